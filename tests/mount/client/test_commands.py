"""The blocking client against real mounts: what the README shows, and commands."""

from __future__ import annotations

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs import MFD_ALLOW_SEALING, MFD_CLOEXEC, MFD_HUGETLB, MFD_INACCESSIBLE
from inaccfs.client.commands import UNAWAITED
from tests.mount import support
from tests.mount.client.files import guest, punch
from tests.mount.support import MIB, PAGE, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.client import Client, File

pytestmark = pytest.mark.fuse


# --- what the README shows ----------------------------------------------------------


def test_the_snippet(mount: inaccfs.Mount, fd: int) -> None:
    events: list[tuple[int, int]] = []
    with inaccfs.connect(mount.path) as shim:
        memory = shim.file(fd)
        with memory.register_notifier(lambda start, end: events.append((start, end))):
            pfn, order = memory.get_pfn(3)
            extents = memory.get_pfns(0, 256)
            memory.put_pfn(pfn)
            punch(fd, 2, 4)
        made = shim.memfd_create("guest", flags=MFD_CLOEXEC | MFD_INACCESSIBLE)
    assert order == 0
    assert sum(extent.count for extent in extents) == 256
    # get_pfn() had allocated the page already.
    page = next(extent for extent in extents if extent.offset + extent.count > 3)
    assert page.pfn + 3 - page.offset == pfn
    assert events == [(2, 6)]
    assert os.fstat(made).st_size == 0
    os.close(made)


def test_a_client_needs_the_mountpoint_or_the_socket(
    mount: inaccfs.Mount, fd: int
) -> None:
    for target in (mount.path, str(mount.path), mount.control):
        with inaccfs.connect(target) as shim:
            assert shim.query_status().mountpoint == str(mount.path)
            assert shim.query_version().package == "inaccfs"


# --- commands -------------------------------------------------------------------------


def got_and_put(shim: Client) -> tuple[int, int]:
    """How many pages were got, and how many put, since the daemon's start."""
    stats = shim.query_stats()
    return stats.pages_got, stats.pages_put


def test_references_are_counted(shim: Client, memory: File) -> None:
    got, put = got_and_put(shim)
    pfn, _ = memory.get_pfn(3)
    assert memory.get_pfn(3).pfn == pfn
    [reference] = shim.query_pins().references
    assert (reference.pfn, reference.count, reference.references) == (pfn, 1, 2)
    memory.put_pfn(pfn)
    memory.put_pfn(pfn)
    assert shim.query_pins().references == []
    assert got_and_put(shim) == (got + 2, put + 2)
    with pytest.raises(OSError, match=r".") as caught:
        memory.put_pfn(pfn)
    assert caught.value.errno == errno.EINVAL


def test_an_extent_is_put_as_it_was_got(shim: Client, memory: File) -> None:
    for extent in memory.get_pfns(5, 100):
        memory.put_pfn(extent.pfn, extent.count)
    assert shim.query_pins().references == []


def test_puts_that_are_not_waited_for_are_in_order(shim: Client, memory: File) -> None:
    got, put = got_and_put(shim)
    for page in range(300):
        memory.put_pfn(memory.get_pfn(page % 256).pfn, wait=False)
    pfns = [memory.get_pfn(page).pfn for page in range(256)]
    # More than can be in flight at once.
    for pfn in pfns:
        memory.put_pfn(pfn, wait=False)
    assert shim.query_pins().references == []
    assert got_and_put(shim) == (got + 300 + 256, put + 300 + 256)


def test_a_put_that_was_refused_is_logged_at_the_latest_by_close(
    mount: inaccfs.Mount, fd: int, caplog: pytest.LogCaptureFixture
) -> None:
    with inaccfs.connect(mount.path) as shim:
        memory = shim.file(fd)
        for _ in range(2):
            memory.put_pfn(1, wait=False)
    assert [each.split(":")[0] for each in caplog.messages] == ["put-pfn"] * 2


def test_puts_to_a_daemon_that_is_stopped_wait_for_it(
    mount: inaccfs.Mount, shim: Client, memory: File
) -> None:
    """At most UNAWAITED are in flight; neither side keeps more."""
    count = 3 * UNAWAITED
    pfns = [memory.get_pfn(page).pfn for page in range(count)]
    events: list[int] = []

    def put() -> None:
        for pfn in pfns:
            events.append(pfn)
            memory.put_pfn(pfn, wait=False)

    os.kill(mount.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            putting = pool.submit(put)
            support.ask_until(lambda: len(events) > UNAWAITED)
            os.kill(mount.pid, signal.SIGCONT)
            putting.result(PATIENCE)
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    assert events == pfns
    assert shim.query_pins().references == []


@pytest.mark.parametrize(
    ("call", "number"),
    [
        pytest.param(lambda file: file.get_pfn(256), errno.EINVAL, id="past the end"),
        pytest.param(lambda file: file.get_pfns(255, 2), errno.EINVAL, id="partly"),
        pytest.param(lambda file: file.get_pfn(-1), errno.EINVAL, id="negative"),
        pytest.param(lambda file: file.get_pfn(1 << 80), errno.EINVAL, id="huge"),
        pytest.param(lambda file: file.get_pfn("3"), errno.EINVAL, id="a text"),
        pytest.param(lambda file: file.put_pfn(1), errno.EINVAL, id="not got"),
        pytest.param(lambda file: file.memory_failure(1), errno.EOPNOTSUPP, id="error"),
    ],
)
def test_a_refusal_is_an_oserror(
    shim: Client, memory: File, call: Callable[[File], object], number: int
) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        call(memory)
    assert caught.value.errno == number
    assert not isinstance(caught.value, ConnectionError)
    assert memory.query().referenced == 0


def test_a_file_that_does_not_exist(shim: Client) -> None:
    with pytest.raises(FileNotFoundError, match="/none"):
        shim.file("/none").query()


def test_an_fd_of_another_file_system(shim: Client) -> None:
    with (
        support.opened("/dev/null") as other,
        pytest.raises(OSError, match="no file of this mount"),
    ):
        shim.file(other)


@pytest.mark.parametrize("flags", [MFD_ALLOW_SEALING, MFD_HUGETLB])
def test_memfd_create_refuses_what_the_patch_refuses(shim: Client, flags: int) -> None:
    with pytest.raises(OSError, match="flags") as caught:
        shim.memfd_create("guest", MFD_INACCESSIBLE | flags)
    assert caught.value.errno == errno.EINVAL


def test_a_memfd_lives_as_long_as_its_fd(shim: Client, mount: inaccfs.Mount) -> None:
    """As with memfd_create(2): the daemon keeps no name for it."""
    made = shim.memfd_create("guest", size=MIB)
    with shim.file(made) as memory:
        pfn, _ = memory.get_pfn(3)
        assert memory.query().name == "memfd:guest"
        # References keep it, too.
        memory.put_pfn(pfn)
    os.close(made)
    support.ask_until(lambda: mount.status().files == 1)


def test_the_guests_own_access(shim: Client, memory: File, fd: int) -> None:
    own = memory.get_memory()
    try:
        assert os.pwrite(own, b"secret", 3 * PAGE) == 6
        assert os.pread(own, 6, 3 * PAGE) == b"secret"
    finally:
        os.close(own)
    assert support.outcome(os.pread, fd, 6, 3 * PAGE) != "ok"


def test_a_closed_file_holds_nothing_open(mount: inaccfs.Mount) -> None:
    """The client's duplicate and the fdname are closed; a notifier keeps the file."""
    with inaccfs.connect(mount.path) as shim:
        with guest(mount) as fd:
            memory = shim.file(fd)
            notifier = memory.register_notifier(lambda *_: None)
            os.posix_fallocate(fd, 0, MIB)
            os.unlink(mount.path / "guest0")
        memory.close()
        assert mount.status().allocated_pages == MIB // PAGE
        notifier.unregister()
        support.ask_until(lambda: mount.status().allocated_pages == 0)
