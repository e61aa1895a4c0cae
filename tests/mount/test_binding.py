"""Clients under other semantics than v8: they bind, and get more kinds of events."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import trio

import inaccfs
from inaccfs import errnos, syscalls
from inaccfs.client import ConnectionLostError, aio
from inaccfs.control.messages import Extent
from inaccfs.syscalls import PUNCH
from tests.mount import support
from tests.mount.support import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from inaccfs.client import Client

pytestmark = pytest.mark.fuse

KEEP = syscalls.FALLOC_FL_KEEP_SIZE

Events = list[tuple[Any, ...]]

FRAMES = """
from inaccfs.semantics import V10


class Frames(V10):
    tells_frames = True
"""

ALIAS = """
from inaccfs.semantics import Bind


class Alias(Bind):
    exclusive = False
"""


class Guest:
    """A mount of some semantics, a client of it, and a file of 16 pages."""

    def __init__(self, mount: inaccfs.Mount, shim: Client, fd: int) -> None:
        self.mount = mount
        self.shim = shim
        self.fd = fd
        self.file = shim.file(fd)
        self.events: Events = []

    def note(self, name: str) -> Callable[..., None]:
        return lambda *args: self.events.append((name, *args))

    def punch(self, first: int, pages: int) -> None:
        syscalls.fallocate(self.fd, PUNCH, first * PAGE, pages * PAGE)

    def allocate(self, first: int, pages: int) -> None:
        syscalls.fallocate(self.fd, KEEP, first * PAGE, pages * PAGE)


@pytest.fixture
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    with (
        support.mounted(semantics=request.param) as mount,
        inaccfs.connect(mount.path) as shim,
        support.opened(mount.path / "guest", os.O_RDWR | os.O_CREAT) as fd,
    ):
        os.ftruncate(fd, 16 * PAGE)
        yield Guest(mount, shim, fd)


@pytest.fixture
def mine(tmp_path: Path) -> Callable[[str, str], str]:
    """Writes a user's class; returns how to choose it."""

    def make(text: str, name: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(text)
        return f"{path}:{name}"

    return make


def refusal(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as exc:
        return exc.errno
    return None


@pytest.mark.parametrize("guest", ["bind", "guest_memfd"], indirect=True)
def test_only_bound_pages_are_got_and_reported(guest: Guest) -> None:
    file, note = guest.file, guest.note
    clipped = guest.shim.query_semantics().name == "guest_memfd"
    with (
        file.bind(2, 6, invalidate_start=note("start"), invalidate_end=note("end")),
        file.bind(6, 9, note("other")) as other,
    ):
        assert file.get_pfns(2, 7)[0].offset == 2
        unbound = errno.EIO if clipped else errno.EINVAL
        assert refusal(lambda: file.get_pfn(1)) == unbound
        assert refusal(lambda: file.get_pfns(8, 2)) == unbound
        assert refusal(lambda: file.bind(5, 7, note("x"))) == errno.EINVAL
        assert refusal(lambda: file.register_notifier(note("x"))) == errno.EOPNOTSUPP
        guest.punch(0, 2)
        guest.punch(4, 1)
        assert guest.events == [("start", 4, 5), ("end", 4, 5)]
        guest.events.clear()
        guest.punch(0, 7)
        ranges = [(2, 6), (6, 7)] if clipped else [(0, 7), (0, 7)]
        assert sorted(guest.events) == [
            ("end", *ranges[0]),
            ("other", *ranges[1]),
            ("start", *ranges[0]),
        ]
        other.unregister()
        assert refusal(lambda: file.get_pfn(7)) == unbound
    assert guest.shim.query_notifiers() == []


def test_ranges_may_overlap_where_the_rules_let_them(
    mine: Callable[[str, str], str],
) -> None:
    """The alias slot of SMRAM needs this; exclusive ranges broke it."""
    with (
        support.mounted(semantics=mine(ALIAS, "Alias")) as mount,
        inaccfs.connect(mount.path) as shim,
        support.opened(mount.path / "guest", os.O_RDWR | os.O_CREAT) as fd,
    ):
        os.ftruncate(fd, 16 * PAGE)
        guest = Guest(mount, shim, fd)
        with guest.file.bind(0, 8, guest.note("ram")):
            with guest.file.bind(4, 6, guest.note("smram")) as smram:
                guest.punch(5, 1)
                assert sorted(guest.events) == [("ram", 5, 6), ("smram", 5, 6)]
                assert (
                    refusal(lambda: guest.file.bind(6, 7, print, exclusive=True))
                    == errno.EINVAL
                )
                (found,) = (
                    (one.start, one.end)
                    for one in shim.query_notifiers()
                    if one.notifier == smram.number
                )
                assert found == (4, 6)
            guest.events.clear()
            guest.punch(5, 1)
            assert guest.events == [("ram", 5, 6)]


@pytest.mark.parametrize("guest", ["v7"], indirect=True)
def test_allocations_send_events_where_the_rules_say_so(guest: Guest) -> None:
    with guest.file.register_notifier(guest.note("gone"), populate=guest.note("come")):
        guest.allocate(2, 3)
        guest.punch(2, 1)
        assert guest.events == [("come", 2, 5), ("gone", 2, 3)]


@pytest.mark.parametrize("guest", ["v7"], indirect=True)
def test_a_locked_page_is_punched_when_it_is_put(guest: Guest) -> None:
    pfn = guest.file.get_pfn(3).pfn
    assert refusal(lambda: guest.file.get_pfn(3)) == errno.EAGAIN
    with (
        guest.file.register_notifier(guest.note("gone")),
        ThreadPoolExecutor(1) as pool,
    ):
        punch = pool.submit(guest.punch, 3, 1)
        support.ask_until(lambda: guest.shim.query_stats().punches == 1)
        assert guest.events == []
        guest.file.put_pfn(pfn)
        punch.result(support.PATIENCE)
        assert guest.events == [("gone", 3, 4)]


def test_a_peer_that_keeps_a_page_locked_is_disconnected() -> None:
    with support.mounted(semantics="v7", ack_timeout=0.3) as mount:
        with (
            support.opened(mount.path / "guest", os.O_RDWR | os.O_CREAT) as fd,
            inaccfs.connect(mount.path) as shim,
        ):
            os.ftruncate(fd, 16 * PAGE)
            guest = Guest(mount, shim, fd)
            guest.file.get_pfn(0)
            guest.punch(0, 1)
            with pytest.raises(ConnectionLostError):
                guest.file.get_pfn(0)
        log = mount.log.read_text()
        assert "keeps pages locked for more than 0.3 s: disconnected" in log
        mount.log.write_text("")


def test_callbacks_get_the_frames_that_go(mine: Callable[[str, str], str]) -> None:
    with (
        support.mounted(semantics=mine(FRAMES, "Frames")) as mount,
        inaccfs.connect(mount.path) as shim,
        support.opened(mount.path / "guest", os.O_RDWR | os.O_CREAT) as fd,
    ):
        os.ftruncate(fd, 16 * PAGE)
        guest = Guest(mount, shim, fd)
        pfn, order = guest.file.get_pfn(3)
        with guest.file.register_notifier(
            invalidate_start=guest.note("start"),
            invalidate_end=guest.note("end"),
            error=guest.note("error"),
            with_frames=True,
        ):
            guest.punch(0, 8)
            gone = [Extent(3, pfn, 1, order)]
            assert guest.events == [("start", 0, 8, gone), ("end", 0, 8, gone)]
            guest.events.clear()
            guest.file.get_pfn(5)
            guest.file.memory_failure(5)
            # This event needs no answer, so no call has waited for it.
            support.ask_until(lambda: guest.events == [("error", 5, 6, [])])


@pytest.mark.parametrize("guest", ["v10", "guest_memfd"], indirect=True)
def test_a_poisoned_page_is_not_got_before_it_is_punched(guest: Guest) -> None:
    file = guest.file
    bound = guest.shim.query_semantics().scope == "range"
    register = (
        (lambda *a, **k: file.bind(0, 16, *a, **k))
        if bound
        else (file.register_notifier)
    )
    with register(guest.note("gone"), error=guest.note("error")):
        file.get_pfn(4)
        file.memory_failure(4)
        support.ask_until(lambda: bool(guest.events))
        assert guest.events == [("gone" if bound else "error", 4, 5)]
        assert refusal(lambda: file.get_pfn(4)) == errnos.EHWPOISON
        assert refusal(lambda: file.memory_failure(16)) == errno.EINVAL
        assert refusal(lambda: file.memory_failure(9)) == errno.ENXIO
        assert file.get_pfn(5).pfn
        guest.punch(4, 1)
        assert file.get_pfn(4).pfn


async def test_tasks_bind_too() -> None:
    events: Events = []
    with (
        support.mounted(semantics="bind") as mount,
        support.opened(mount.path / "guest", os.O_RDWR | os.O_CREAT) as fd,
    ):
        os.ftruncate(fd, 16 * PAGE)

        async def start(first: int, end: int) -> None:
            await trio.lowlevel.checkpoint()
            events.append((first, end))

        async with aio.connect(mount.path) as shim:
            file = await shim.file(fd)
            async with await file.bind(2, 4, start):
                await trio.to_thread.run_sync(
                    syscalls.fallocate, fd, PUNCH, 0, 3 * PAGE
                )
                assert events == [(0, 3)]
            assert await shim.query_notifiers() == []
            with pytest.raises(OSError, match="use bind"):
                await file.register_notifier(start)
