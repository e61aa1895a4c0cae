"""The clients against real mounts: real fds, real punches, real disconnections."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio

import inaccfs
from inaccfs import (
    MFD_ALLOW_SEALING,
    MFD_CLOEXEC,
    MFD_HUGETLB,
    MFD_INACCESSIBLE,
)
from inaccfs.client import (
    CannotConnectError,
    ClientClosedError,
    ConnectionLostError,
    aio,
)
from inaccfs.client.commands import UNAWAITED
from inaccfs.errors import DeadDaemonError, NoAnswerError, NotMountedError
from inaccfs.fuse import finding
from inaccfs.syscalls import PUNCH, fallocate
from tests.mount import support
from tests.mount.support import MIB, PAGE, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.client import Client, File

pytestmark = pytest.mark.fuse


def punch(fd: int, first: int = 0, pages: int = 1) -> None:
    """Punch a hole through the mount."""
    fallocate(fd, PUNCH, first * PAGE, pages * PAGE)


@contextmanager
def guest(
    mount: inaccfs.Mount, name: str = "guest0", pages: int = 256
) -> Iterator[int]:
    """A new file of the mount; an fd of it."""
    with support.opened(mount.path / name, os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, pages * PAGE)
        yield fd


@pytest.fixture
def fd(mount: inaccfs.Mount) -> Iterator[int]:
    with guest(mount) as made:
        yield made


@pytest.fixture
def shim(mount: inaccfs.Mount, fd: int) -> Iterator[Client]:
    with inaccfs.connect(mount.path) as made:
        yield made


@pytest.fixture(params=["fd", "path"])
def memory(request: pytest.FixtureRequest, shim: Client, fd: int) -> Iterator[File]:
    with shim.file(fd if request.param == "fd" else "/guest0") as made:
        yield made


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


# --- notifiers ------------------------------------------------------------------------


def test_a_punch_waits_for_the_callback(memory: File, fd: int) -> None:
    entered, may_return = threading.Event(), threading.Event()

    def callback(start: int, end: int) -> None:
        entered.set()
        assert may_return.wait(PATIENCE)

    with memory.register_notifier(callback), ThreadPoolExecutor(1) as pool:
        punching = pool.submit(punch, fd)
        assert entered.wait(PATIENCE)
        # The client and others go on meanwhile.
        assert memory.get_pfn(1)
        assert not punching.done()
        may_return.set()
        punching.result(PATIENCE)


def test_a_callback_may_use_the_client(memory: File, fd: int) -> None:
    """The callback gets new pages in the punched range while the punch runs."""
    found: list[int] = []
    memory.get_pfn(3)

    def callback(start: int, end: int) -> None:
        found.append(memory.get_pfn(start).pfn)

    with memory.register_notifier(callback):
        punch(fd, 3)
    assert found == [memory.get_pfn(3).pfn]


def test_an_exception_of_a_callback_is_raised_by_the_block(
    memory: File, fd: int
) -> None:
    def fail(start: int, end: int) -> None:
        raise ZeroDivisionError(f"{start} {end}")

    with (
        pytest.raises(ZeroDivisionError, match="3 5"),
        memory.register_notifier(fail),
    ):
        punch(fd, 3, 2)
    assert memory.query().notifiers == 0


def test_a_callback_may_unregister_itself_and_others(
    shim: Client, memory: File, fd: int
) -> None:
    events: list[str] = []

    def callback(start: int, end: int) -> None:
        events.append("own")
        own.unregister()
        for other in others:
            other.unregister()

    own = memory.register_notifier(callback)
    others = [memory.register_notifier(lambda *_: events.append("o")) for _ in range(3)]
    punch(fd)
    punch(fd)
    assert events == ["own"]
    for notifier in (own, *others):
        notifier.unregister()
    assert shim.query_notifiers() == []


def test_registering_while_a_file_is_punched_delays_no_other_call(
    shim: Client, memory: File, fd: int
) -> None:
    """A registration waits for the punch, and the answer must overtake it."""
    entered, may_return = threading.Event(), threading.Event()

    def callback(start: int, end: int) -> None:
        entered.set()
        assert may_return.wait(PATIENCE)
        own.unregister()

    own = memory.register_notifier(callback)
    with ThreadPoolExecutor(2) as pool:
        punching = pool.submit(punch, fd)
        assert entered.wait(PATIENCE)
        registering = pool.submit(memory.register_notifier, lambda *_: None)
        support.ask_until(lambda: len(shim.query_notifiers()) == 2)
        may_return.set()
        punching.result(PATIENCE)
        registering.result(PATIENCE).unregister()
    own.unregister()


def test_a_punch_inside_the_callback_ends_with_the_timeout() -> None:
    """As the docstring says, the kernel lets no second punch of the file begin."""
    with (
        inaccfs.mounted(ack_timeout=0.3) as mount,
        guest(mount) as fd,
        inaccfs.connect(mount.path) as shim,
    ):
        notifier = shim.file("/guest0").register_notifier(lambda *_: punch(fd, 5))
        punch(fd)
        with pytest.raises(ConnectionLostError, match="log says why"):
            notifier.unregister()
        assert "no answer" in mount.log.read_text()
        # Commands use another connection, and the client may register again.
        called = threading.Event()
        notifier = shim.file("/guest0").register_notifier(lambda *_: called.set())
        punch(fd)
        assert called.wait(PATIENCE)
        # On a busy machine this answer may be late, too.
        with suppress(ConnectionLostError):
            notifier.unregister()


def test_many_notifiers_and_threads(shim: Client, memory: File, fd: int) -> None:
    counts = [0] * 20

    def count(number: int) -> Callable[[int, int], None]:
        def callback(start: int, end: int) -> None:
            counts[number] += 1
            memory.put_pfn(memory.get_pfn(start).pfn)

        return callback

    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        for number in range(20):
            stack.enter_context(memory.register_notifier(count(number)))
        for done in [pool.submit(punch, fd, number) for number in range(10)]:
            done.result(PATIENCE)
    assert counts == [10] * 20
    assert shim.query_notifiers() == []


# --- the ends -------------------------------------------------------------------------

KILLED = """
import sys, threading, inaccfs

def callback(start, end):
    print("got the event", flush=True)
    threading.Event().wait()

shim = inaccfs.connect(sys.argv[1])
memory = shim.file("/guest0")
memory.get_pfns(0, 10)
memory.register_notifier(callback)
print("registered", flush=True)
threading.Event().wait()
"""


def test_a_client_that_is_killed_in_a_callback_delays_no_other(
    mount: inaccfs.Mount, shim: Client, fd: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(mount.path)],
        stdout=subprocess.PIPE,
        env=support.ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"registered\n"
        with ThreadPoolExecutor(1) as pool:
            punching = pool.submit(punch, fd)
            assert process.stdout.readline() == b"got the event\n"
            assert not punching.done()
            process.kill()
            punching.result(PATIENCE)
    support.ask_until(lambda: shim.query_pins().references == [])
    assert shim.query_notifiers() == []


def test_a_closed_client_has_left_nothing(mount: inaccfs.Mount, fd: int) -> None:
    with inaccfs.connect(mount.path) as witness:
        with inaccfs.connect(mount.path) as shim:
            memory = shim.file(fd)
            memory.register_notifier(lambda *_: None)
            memory.get_pfns(0, 10)
            assert witness.query_stats().references == 10
        support.ask_until(lambda: witness.query_stats().peers == 1)
        assert witness.query_stats().references == 0
        with pytest.raises(ClientClosedError, match="connect anew"):
            memory.get_pfn(0)


def test_quit_ends_the_daemon_and_its_notifiers_quietly() -> None:
    with support.mounted() as mount, inaccfs.connect(mount.path) as shim:
        support.new_file(mount.path / "guest0", MIB)
        with shim.file("/guest0").register_notifier(lambda *_: None):
            shim.quit()
            assert mount.process.wait(PATIENCE) == 0
        with pytest.raises(ConnectionLostError, match=r"ended \(quit\)"):
            shim.query_version()


def test_a_daemon_that_dies_is_an_error(mount: inaccfs.Mount) -> None:
    with support.doomed() as doomed, inaccfs.connect(doomed.path) as shim:
        support.new_file(doomed.path / "guest0", MIB)
        notifier = shim.file("/guest0").register_notifier(lambda *_: None)
        support.kill(doomed)
        with pytest.raises(ConnectionLostError, match="hung up"):
            shim.query_version()
        with pytest.raises(ConnectionLostError, match="hung up"):
            notifier.unregister()
        with pytest.raises(DeadDaemonError, match="inaccfs umount"):
            inaccfs.connect(doomed.path)
        with pytest.raises(CannotConnectError, match="daemon is dead"):
            inaccfs.connect(doomed.control)


def test_a_daemon_that_is_stopped_is_an_error(
    mount: inaccfs.Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "DAEMON_SECONDS", 0.1)
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        with pytest.raises(NoAnswerError, match=r"stopped\?"):
            inaccfs.connect(mount.path)
        with pytest.raises(CannotConnectError, match="no greeting came"):
            inaccfs.connect(mount.control)
    finally:
        os.kill(mount.pid, signal.SIGCONT)


def test_a_limit_is_an_error_of_the_command_that_meets_it() -> None:
    """A client with notifiers is two peers."""
    with support.mounted(options="limit=peers=1") as mount:
        support.new_file(mount.path / "guest0", MIB)
        with inaccfs.connect(mount.path) as shim:
            with pytest.raises(ConnectionLostError, match="1 peers are connected"):
                inaccfs.connect(mount.path)
            with pytest.raises(ConnectionLostError, match="--limit peers"):
                shim.file("/guest0").register_notifier(lambda *_: None)
            assert shim.file("/guest0").query().notifiers == 0


def test_a_path_that_is_no_mount(mount: inaccfs.Mount, fd: int) -> None:
    for path in (mount.path / "guest0", mount.path.parent, mount.path / "none"):
        with pytest.raises(NotMountedError, match="neither an inaccfs mount nor"):
            inaccfs.connect(path)


def test_two_hundred_clients_at_once(mount: inaccfs.Mount, fd: int) -> None:
    """These are more than a backlog has room for; some of them have notifiers."""
    events: list[int] = []
    with ExitStack() as stack, ThreadPoolExecutor(20) as pool:
        shims = [
            stack.enter_context(made)
            for made in pool.map(lambda _: inaccfs.connect(mount.path), range(200))
        ]
        for shim in shims[:20]:
            stack.enter_context(
                shim.file("/guest0").register_notifier(lambda *_: events.append(1))
            )
        punch(fd)
        assert len(events) == 20
        assert shims[0].query_stats().peers == 220


# --- trio -----------------------------------------------------------------------------


async def apunch(fd: int, first: int = 0, pages: int = 1) -> None:
    """`punch` in a thread: callbacks run in trio's thread."""
    await trio.to_thread.run_sync(punch, fd, first, pages)


async def test_the_snippet_with_trio(mount: inaccfs.Mount, fd: int) -> None:
    events: list[tuple[int, int]] = []

    async def callback(start: int, end: int) -> None:
        await trio.lowlevel.checkpoint()
        events.append((start, end))

    with trio.fail_after(PATIENCE):
        async with (
            aio.connect(mount.path) as shim,
            await shim.file(fd) as memory,
            await memory.register_notifier(callback),
        ):
            pfn, order = await memory.get_pfn(3)
            extents = await memory.get_pfns(0, 256)
            await memory.put_pfn(pfn)
            await apunch(fd, 2, 4)
            assert (await shim.query_status()).pid == mount.pid
            made = await shim.memfd_create("guest")
            os.close(made)
    assert order == 0
    assert sum(extent.count for extent in extents) == 256
    assert events == [(2, 6)]


async def test_a_cancelled_get_leaves_no_reference(
    mount: inaccfs.Mount, fd: int
) -> None:
    """If the thread was quicker it has a reference, and puts it."""

    async def get(memory: aio.File, offset: int) -> None:
        pfn, _ = await memory.get_pfn(offset)
        await memory.put_pfn(pfn)

    async def get_range(memory: aio.File, offset: int) -> None:
        extents = await memory.get_pfns(offset, 7)
        with trio.CancelScope(shield=True):
            for extent in extents:
                await memory.put_pfn(extent.pfn, extent.count)

    with trio.fail_after(PATIENCE):
        async with aio.connect(mount.path) as shim, await shim.file(fd) as memory:
            before = await shim.query_stats()
            for checkpoints in range(20):
                async with trio.open_nursery() as nursery:
                    for offset in range(10):
                        nursery.start_soon(get, memory, offset)
                        nursery.start_soon(get_range, memory, offset)
                    for _ in range(checkpoints):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
            while (await shim.query_pins()).references:
                pass
            stats = await shim.query_stats()
            got = stats.pages_got - before.pages_got
            assert got == stats.pages_put - before.pages_put > 0


async def test_trio_callbacks_use_the_client_and_unregister(
    mount: inaccfs.Mount, fd: int
) -> None:
    found: list[int] = []

    with trio.fail_after(PATIENCE):
        async with aio.connect(mount.path) as shim, await shim.file(fd) as memory:

            async def callback(start: int, end: int) -> None:
                found.append((await memory.get_pfn(start)).pfn)
                await notifier.unregister()
                await other.unregister()

            notifier = await memory.register_notifier(callback)
            other = await memory.register_notifier(lambda *_: None)
            await apunch(fd, 3)
            await apunch(fd, 3)
            assert len(found) == 1
            await notifier.unregister()
            await other.unregister()
            assert await shim.query_notifiers() == []


async def test_an_exception_of_a_trio_callback_is_raised_by_the_block(
    mount: inaccfs.Mount, fd: int
) -> None:
    def fail(start: int, end: int) -> None:
        raise ZeroDivisionError

    with trio.fail_after(PATIENCE):
        async with aio.connect(mount.path) as shim:
            memory = await shim.file("/guest0")
            with pytest.raises(ZeroDivisionError):
                async with await memory.register_notifier(fail):
                    await apunch(fd)
            with pytest.raises(OSError, match="past the end"):
                await memory.get_pfn(256)


async def test_slow_trio_callbacks_of_a_punch_run_side_by_side(
    mount: inaccfs.Mount, fd: int
) -> None:
    running = 0
    all_run = trio.Event()

    async def callback(start: int, end: int) -> None:
        nonlocal running
        running += 1
        if running == 5:
            all_run.set()
        await all_run.wait()

    with trio.fail_after(PATIENCE):
        async with aio.connect(mount.path) as shim:
            memory = await shim.file("/guest0")
            notifiers = [await memory.register_notifier(callback) for _ in range(5)]
            await apunch(fd)
            for notifier in notifiers:
                await notifier.unregister()
    assert running == 5


async def test_a_daemon_that_ends_is_an_error_in_trio() -> None:
    with support.mounted() as mount, trio.fail_after(PATIENCE):
        support.new_file(mount.path / "guest0", MIB)
        async with aio.connect(mount.path) as shim:
            memory = await shim.file("/guest0")
            async with await memory.register_notifier(lambda *_: None):
                await shim.quit()
                await trio.to_thread.run_sync(mount.process.wait, PATIENCE)
            with pytest.raises(ConnectionLostError, match=r"ended \(quit\)"):
                await shim.query_version()
