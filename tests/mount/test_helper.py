"""What the helper does for a mount: nothing hangs, and nothing is left."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

import inaccfs
from inaccfs import mountcalls, syscalls
from inaccfs.helper.tasks import Helper
from inaccfs.syscalls import PUNCH
from tests.mount import support
from tests.mount.peers import peer
from tests.mount.support import MIB, PAGE, children_of
from tests.mount.unanswered import unanswered
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.fuse]


@pytest.fixture
def mount(new_mount: inaccfs.Mount) -> inaccfs.Mount:
    """Each test has a new helper, and kills it."""
    return new_mount


def punch(fd: int, length: int) -> None:
    """Punch the first *length* bytes of a file."""
    syscalls.fallocate(fd, PUNCH, 0, length)


def have_ended(pidfds: list[int]) -> bool:
    """Whether processes end, in time."""
    deadline = time.monotonic() + support.PATIENCE
    for pidfd in pidfds:
        left = max(0.0, deadline - time.monotonic())
        if not select.select([pidfd], [], [], left)[0]:
            return False
    return True


# --- an fd whose close hangs ------------------------------------------------------


def device_of(path: Path) -> str:
    fd = os.open(path, os.O_PATH)
    device, _ = syscalls.identity(fd)
    os.close(fd)
    return device


@support.needs_root
async def test_an_fd_whose_close_hangs_stays_out_of_the_daemon(tmp_path: Path) -> None:
    point = tmp_path / "point"
    point.mkdir()
    device = device_of(tmp_path)
    with ExitStack() as stack:
        # The helper is made first, as in the daemon: a fork inherits all open fds.
        helper = Helper()
        stuck = stack.enter_context(unanswered(point))
        stack.callback(helper.close)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        stack.enter_context(ours)
        stack.enter_context(theirs)
        socket.send_fds(theirs, [b"one"], [stuck])
        received = await helper.receive_fd(ours, 3, device)
        assert received[:3] == (3, -1, True)
        assert received.closing is not None
        # The next fd gets another worker.
        theirs.send(b"two")
        assert await helper.receive_fd(ours, 3, device) == (3, -1, False, None)
        assert not received.closing.has_ended
        pidfds = [os.pidfd_open(pid) for pid in children_of(helper.pid)]
    # The helper did not wait, and its workers ended with the file system.
    assert have_ended(pidfds)
    with trio.fail_after(support.PATIENCE):
        await received.closing.wait()
    for pidfd in pidfds:
        os.close(pidfd)


# --- killed -----------------------------------------------------------------------


def end(pid: int) -> None:
    """Kill a process, and wait until it has ended."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert have_ended([pidfd])
    os.close(pidfd)


def test_no_caller_notices_that_the_helper_was_killed(mount: inaccfs.Mount) -> None:
    with peer(mount.control) as shim, open(mount.path / "guest", "wb") as guest:
        for _ in range(2):
            for pid in children_of(mount.pid):
                with suppress(ProcessLookupError):
                    end(pid)
            assert shim.do("memfd-create", name="m", fdname="m") == {}
            assert shim.do("closefd", fdname="m") == {}
            os.posix_fallocate(guest.fileno(), 0, 130 * MIB)
            punch(guest.fileno(), 130 * MIB)
    output = mount.log.read_text()
    assert output.count("the helper was killed: started a new one") == 2, output


def test_a_helper_that_is_stopped_ends_with_the_mount() -> None:
    with ExitStack() as stack:
        with support.mounted() as mount:
            for pid in children_of(mount.pid):
                child = os.pidfd_open(pid)
                stack.callback(os.close, child)
                # A worker that was stopped before its first system call stays.
                stack.callback(_kill_if_there, child)
                os.kill(pid, signal.SIGSTOP)
        assert mount.process.returncode == 0


def _kill_if_there(child: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(child, signal.SIGKILL)


def _created(path: Path, stack: ExitStack) -> threading.Thread:
    """A thread that makes files through the control socket until the daemon dies."""

    def work() -> None:
        with suppress(OSError, AssertionError), peer(path) as shim:
            while True:
                shim.do("memfd-create", name="m", fdname="m", size=8 * MIB)
                os.posix_fallocate(shim.fds[-1], 0, 2 * MIB)
                shim.do("closefd", fdname="m")
                while len(shim.fds) > 3:
                    os.close(shim.fds.pop(0))

    thread = threading.Thread(target=work)
    stack.callback(thread.join)
    thread.start()
    return thread


def _kill_meanwhile(backing: Path, seconds: float) -> None:
    with inaccfs.mounted(backing=backing) as mount, ExitStack() as stack:
        for _ in range(4):
            _created(mount.control, stack)
        time.sleep(seconds)
        pidfds: list[int] = []
        for pid in (mount.pid, *children_of(mount.pid)):
            with suppress(ProcessLookupError):
                pidfds.append(os.pidfd_open(pid))
                stack.callback(os.close, pidfds[-1])
        mount.process.kill()
        assert have_ended(pidfds)
        with refused(errno.ENOTCONN):
            os.stat(mount.path / "x")


@support.needs_root
@pytest.mark.parametrize("seed", range(8))
def test_a_daemon_killed_while_it_makes_files_ends(tmp_path: Path, seed: int) -> None:
    """All processes end and all memory is freed, at any moment."""
    backing = tmp_path / "backing"
    backing.mkdir()
    mountcalls.mount("backing", str(backing), "tmpfs", 0, "size=256m,mode=700")
    with ExitStack() as stack:
        stack.callback(mountcalls.umount, str(backing), mountcalls.MNT_DETACH)
        with pytest.raises(inaccfs.InaccfsError, match="ended with status -9"):
            _kill_meanwhile(backing, random.Random(seed).uniform(0.05, 0.3))
        totals = os.statvfs(backing)
        assert totals.f_bfree == totals.f_blocks


# --- memory cgroups ---------------------------------------------------------------


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A memory cgroup, of version 1 or 2, during a with block."""
    for top, name in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        directory = Path(top, f"inaccfs-test-{os.getpid()}")
        try:
            directory.mkdir()
        except OSError:
            continue
        try:
            (directory / name).write_text(str(limit))
            break
        except OSError:
            directory.rmdir()
    else:
        pytest.skip("no memory cgroup can be made here")
    try:
        yield directory
    finally:
        deadline = time.monotonic() + support.PATIENCE
        while True:
            try:
                directory.rmdir()
                break
            except OSError:
                # Its last process has just ended.
                assert time.monotonic() < deadline
                time.sleep(0.01)


def _move(mount: inaccfs.Mount, cgroup: Path) -> list[int]:
    """Move all processes of a mount into a cgroup; return the helper and its worker.

    Memory that they have already stays charged to the old cgroup.
    """
    support.ask_until(lambda: len(children_of(mount.pid)) == 2)
    helpers = children_of(mount.pid)
    for pid in (mount.pid, *helpers):
        (cgroup / "cgroup.procs").write_text(str(pid))
    return helpers


@support.needs_root
@pytest.mark.parametrize("mib", [150, 100, 1])
def test_beyond_the_limit_of_a_cgroup_is_enomem(mib: int) -> None:
    """One large allocation, or many small ones: they fail, and the daemon lives."""
    with memory_cgroup(96 * MIB) as cgroup, support.mounted(size="1g") as mount:
        helper, _ = _move(mount, cgroup)
        with open(mount.path / "guest", "wb") as guest:
            for _ in range(3):
                with refused(errno.ENOMEM):
                    for at in range(0, 400, mib):
                        os.posix_fallocate(guest.fileno(), at * MIB, mib * MIB)
            assert children_of(mount.pid)[0] == helper
            # The memory can be used again.
            punch(guest.fileno(), 400 * MIB)
            os.posix_fallocate(guest.fileno(), 0, 16 * MIB)


@support.needs_root
@pytest.mark.parametrize("frames", ["one MiB at a time", "one page of each folio"])
def test_pages_beyond_the_limit_of_a_cgroup_are_enomem(frames: str) -> None:
    pages = MIB // PAGE
    source, count, step = "auto", pages, pages
    if frames == "one page of each folio":
        source, count, step = "simulated", 1, 2 * pages
    with (
        memory_cgroup(96 * MIB) as cgroup,
        support.mounted(size="1g", pfn_source=source) as mount,
    ):
        helper, _ = _move(mount, cgroup)
        (mount.path / "guest").touch()
        os.truncate(mount.path / "guest", 400 * MIB)
        with peer(mount.control) as shim:
            for at in range(0, 400 * pages, step):
                reply = shim.do("get-pfn", file="/guest", offset=at, count=count)
                if isinstance(reply, str):
                    break
            assert "ENOMEM" in reply
        assert children_of(mount.pid)[0] == helper


@support.needs_root
@pytest.mark.parametrize("kind", ["files", "directories", "links", "attributes"])
def test_names_and_attributes_beyond_the_limit_of_a_cgroup_are_enomem(
    kind: str,
) -> None:
    """They are charged to the daemon, and no worker can allocate them for it."""
    with memory_cgroup(16 * MIB) as cgroup, support.mounted() as mount:
        helper, _ = _move(mount, cgroup)
        (mount.path / "first").touch()

        def make(number: int) -> None:
            path = mount.path / f"{number:0200}"
            match kind:
                case "files":
                    path.touch()
                case "directories":
                    path.mkdir()
                case "links":
                    path.symlink_to("x" * 2000)
                case "attributes":
                    name = f"trusted.{number % 50}"
                    if number % 50 == 0:
                        path.touch()
                    at = mount.path / f"{number - number % 50:0200}"
                    os.setxattr(at, name, bytes(60_000))

        with refused(errno.ENOMEM):
            for number in range(40_000):
                make(number)
        assert children_of(mount.pid)[0] == helper
        os.stat(mount.path / "first")
        with peer(mount.control) as shim:
            support.ask_until(lambda: shim.do("query-files") == [])


@support.needs_root
def test_a_worker_that_is_killed_is_enomem(mount: inaccfs.Mount) -> None:
    """As by the OOM killer: the caller was not interrupted."""
    found: list[int] = []

    def allocate() -> None:
        with open(mount.path / "guest", "wb") as guest:
            try:
                os.posix_fallocate(guest.fileno(), 0, support.GIB)
            except OSError as exc:
                found.append(exc.errno or 0)

    support.need_memory(support.GIB)
    helper = children_of(mount.pid)[0]
    thread = threading.Thread(target=allocate)
    thread.start()
    support.ask_until(lambda: support.used(mount.path) > 0)
    for worker in children_of(helper):
        os.kill(worker, signal.SIGKILL)
    thread.join()
    assert found == [errno.ENOMEM]


def test_the_oom_killer_takes_helper_and_workers_first(mount: inaccfs.Mount) -> None:
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert score(mount.pid) == score(os.getpid())
    helpers = children_of(mount.pid)
    assert helpers
    assert {score(pid) for pid in helpers} == {1000}
