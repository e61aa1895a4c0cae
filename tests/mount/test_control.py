"""The control socket of real mounts: fds of real files, real punches, real frames."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs import syscalls
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.mount import support
from tests.mount.peers import Peer, peer
from tests.mount.support import MIB, PAGE, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2); the errno, or 0."""
    try:
        syscalls.fallocate(fd, mode, offset, length)
    except OSError as exc:
        return exc.errno or 0
    return 0


@contextmanager
def guest(mount: inaccfs.Mount, size: int = MIB, name: str = "guest") -> Iterator[int]:
    """A file of *size* bytes on the mount; an O_RDWR fd of it."""
    fd = os.open(mount.path / name, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


# --- fds ------------------------------------------------------------------------


def test_an_fd_of_the_mount_is_known_by_its_inode(mount: inaccfs.Mount) -> None:
    with guest(mount) as fd, peer(mount.control) as shim:
        assert shim.do("getfd", fd, fdname="mine") == {}
        info = shim.do("query-file", file="mine")
        assert (info["name"], info["ino"]) == ("/guest", os.fstat(fd).st_ino)
        assert (info["size"], info["page_size"]) == (MIB, PAGE)


def test_a_file_lives_until_its_last_fdname_goes(mount: inaccfs.Mount) -> None:
    with peer(mount.control) as shim:
        with guest(mount) as fd:
            os.posix_fallocate(fd, 0, MIB)
            shim.do("getfd", fd, fdname="mine")
            os.unlink(mount.path / "guest")
        assert mount.status().allocated_pages == MIB // PAGE
        assert shim.do("closefd", fdname="mine") == {}
        support.ask_until(lambda: mount.status().allocated_pages == 0)


def test_the_daemon_leaks_no_fds(mount: inaccfs.Mount) -> None:
    with guest(mount) as fd, peer(mount.control) as shim:
        shim.do("query-version")
        read, write = os.pipe()
        before = support.open_fds(mount.pid)
        for name in "abc":
            shim.do("getfd", fd, fd, read, fdname=name)
            assert "EINVAL" in shim.do("getfd", write, fdname="x")
            assert shim.do("memfd-create", fd, name="m", fdname=name) == {}
            assert shim.do("get-memory", file="/guest") == {}
            shim.do("register-notifier", write, file=name)
            shim.do("get-pfn", file="/guest", offset=0)
            shim.begin("nonsense", fd, read)
            shim.answer()
        with peer(mount.control) as other:
            other.do("getfd", fd, fdname="a")
            other.do("get-memory", file="a")
        for one in (read, write):
            os.close(one)
    support.ask_until(lambda: support.open_fds(mount.pid) <= before - 1)


def test_an_fd_of_a_file_system_that_hangs_delays_no_other_peer(
    mount: inaccfs.Mount,
) -> None:
    """The fd is of a FUSE mount whose daemon is stopped: even close(2) may hang."""
    with support.mounted() as other, guest(other, name="stuck") as stuck:
        os.kill(other.pid, signal.SIGSTOP)
        try:
            with peer(mount.control) as shim:
                assert "EINVAL" in shim.do("getfd", stuck, fdname="a")
                shim.do("query-version", stuck)
            with peer(mount.control) as shim:
                assert "qemu" in shim.do("query-version")
            assert mount.status().files == 0
        finally:
            os.kill(other.pid, signal.SIGCONT)


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/maps", ".", "/"])
def test_other_peoples_files_are_refused(mount: inaccfs.Mount, path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    with peer(mount.control) as shim:
        assert "EINVAL: the fd is no file of this mount" in shim.do(
            "getfd", fd, fdname="a"
        )
    os.close(fd)


def test_memfd_create_makes_a_file_without_a_name(mount: inaccfs.Mount) -> None:
    with peer(mount.control) as shim:
        assert shim.do("memfd-create", name="vm0", fdname="m", size=2 * PAGE) == {}
        (fd,) = shim.fds
        found = os.fstat(fd)
        assert (found.st_size, found.st_nlink, found.st_uid) == (2 * PAGE, 0, 0)
        assert found.st_dev == os.stat(mount.path).st_dev
        assert shim.do("query-file", file="m")["name"] == "memfd:vm0"
        assert fallocate(fd, 0, 0, 2 * PAGE) == 0
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 4 * PAGE)
        assert "EINVAL" in shim.do("memfd-create", name="x", fdname="x", size=100)
        assert os.listdir(mount.path) == []
    support.ask_until(lambda: mount.status().files == 0)


@support.needs_root
def test_memfd_create_under_another_mount_is_refused(mount: inaccfs.Mount) -> None:
    with peer(mount.control) as shim:
        support.run("mount", "-t", "tmpfs", "over", mount.path)
        try:
            assert "ESTALE" in shim.do("memfd-create", name="x", fdname="x")
            assert "ENOENT" in shim.do("query-file", file="x")
        finally:
            # It is lazy because the helper closes its file there only after it has
            # answered.
            support.run("umount", "--lazy", mount.path)
        assert shim.do("memfd-create", name="x", fdname="x") == {}


# --- invalidation ---------------------------------------------------------------


@contextmanager
def notified(mount: inaccfs.Mount) -> Iterator[tuple[int, Peer]]:
    """A guest's memory, and a peer with a notifier of it."""
    with guest(mount) as fd, peer(mount.control) as shim:
        assert "notifier" in shim.do("register-notifier", file="/guest")
        yield fd, shim


@pytest.mark.parametrize("length", [2 * PAGE, 8 * MIB], ids=["quick", "long"])
def test_a_punch_waits_for_the_answer(
    mount: inaccfs.Mount, pool: ThreadPoolExecutor, length: int
) -> None:
    with notified(mount) as (fd, shim):
        assert allocate(pool, shim, fd, length) == 0
        punch = pool.submit(fallocate, fd, PUNCH, 0, length)
        event = shim.event()
        assert (event["event"], event["start"]) == ("INVALIDATE", 0)
        assert event["end"] == length // PAGE
        # The order of v8: the memory has been freed when the event comes.
        assert os.fstat(fd).st_blocks == 0
        assert not punch.done()
        assert shim.done(event) == {}
        assert punch.result(PATIENCE) == 0


def allocate(pool: ThreadPoolExecutor, shim: Peer, fd: int, length: int) -> int:
    """Allocate from the start; the notifier gets an event for that, too."""
    allocation = pool.submit(fallocate, fd, 0, 0, length)
    shim.done(shim.event())
    return allocation.result(PATIENCE)


def test_a_failed_call_sends_its_event_and_keeps_its_errno(
    mount: inaccfs.Mount, pool: ThreadPoolExecutor
) -> None:
    with notified(mount) as (fd, shim):
        before = shim.do("query-stats")["events"]
        # The tmpfs has no such mode.
        call = pool.submit(fallocate, fd, 0x10 | FALLOC_FL_KEEP_SIZE, 0, PAGE)
        event = shim.event()
        assert (event["start"], event["end"]) == (0, 1)
        shim.done(event)
        assert call.result(PATIENCE) == errno.EOPNOTSUPP
        # This one does not reach the backing.
        assert fallocate(fd, PUNCH, 1, PAGE) == errno.EINVAL
        assert shim.do("query-stats")["events"] == before + 1


def test_other_calls_go_on_while_a_punch_waits(
    mount: inaccfs.Mount, pool: ThreadPoolExecutor
) -> None:
    with notified(mount) as (fd, shim), guest(mount, name="other") as other:
        punch = pool.submit(fallocate, fd, PUNCH, 0, PAGE)
        event = shim.event()
        assert os.fstat(fd).st_size == MIB
        assert fallocate(other, 0, 0, PAGE) == 0
        assert sorted(os.listdir(mount.path)) == ["guest", "other"]
        assert "pfn" in shim.do("get-pfn", file="/guest", offset=0)
        assert not punch.done()
        shim.done(event)
        assert punch.result(PATIENCE) == 0


DIE_IN_A_PUNCH = """
import sys
from pathlib import Path
from tests.mount.peers import peer
with peer(Path(sys.argv[1])) as shim:
    shim.do("register-notifier", file="/guest")
    print("registered", flush=True)
    shim.event()
    print("got the event", flush=True)
    sys.stdin.read()
"""


def test_a_peer_that_is_killed_in_a_punch_delays_no_other_process(
    mount: inaccfs.Mount, pool: ThreadPoolExecutor
) -> None:
    with guest(mount) as fd:
        process = subprocess.Popen(
            [sys.executable, "-c", DIE_IN_A_PUNCH, str(mount.control)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=support.TOP,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"registered\n"
            punch = pool.submit(fallocate, fd, PUNCH, 0, PAGE)
            assert process.stdout.readline() == b"got the event\n"
            assert not punch.done()
            process.kill()
            assert punch.result(PATIENCE) == 0
        with peer(mount.control) as shim:
            support.ask_until(lambda: shim.do("query-notifiers") == [])


def test_a_silent_peer_is_evicted_and_the_log_says_so(
    pool: ThreadPoolExecutor,
) -> None:
    with inaccfs_mounted(ack_timeout=0.3) as mount:
        with notified(mount) as (fd, shim):
            punch = pool.submit(fallocate, fd, PUNCH, 0, PAGE)
            shim.event()
            assert punch.result(PATIENCE) == 0
            assert shim.socket.recv(1) == b""
        assert "no answer to an event of notifier 1 within 0.3 s" in (
            mount.log.read_text()
        )


def test_a_punch_in_the_callback_ends_with_the_timeout(
    pool: ThreadPoolExecutor,
) -> None:
    """The kernel lets no second fallocate(2) of a file begin: see the docs."""
    with inaccfs_mounted(ack_timeout=0.3) as mount, notified(mount) as (fd, shim):
        first = pool.submit(fallocate, fd, PUNCH, 0, PAGE)
        shim.event()
        second = pool.submit(fallocate, fd, PUNCH, PAGE, PAGE)
        assert first.result(PATIENCE) == second.result(PATIENCE) == 0


def test_a_punch_of_another_file_in_the_callback_is_no_problem(
    mount: inaccfs.Mount, pool: ThreadPoolExecutor
) -> None:
    with notified(mount) as (fd, shim), guest(mount, name="other") as other:
        punch = pool.submit(fallocate, fd, PUNCH, 0, PAGE)
        event = shim.event()
        assert fallocate(other, PUNCH, 0, PAGE) == 0
        shim.done(event)
        assert punch.result(PATIENCE) == 0


@contextmanager
def inaccfs_mounted(**options: object) -> Iterator[inaccfs.Mount]:
    """A mount whose log may have errors in it."""
    with inaccfs.mounted(**options) as mount:  # type: ignore[arg-type]
        yield mount


@pytest.mark.parametrize("how", ["quit", "SIGTERM"])
def test_the_end_comes_while_a_punch_waits(pool: ThreadPoolExecutor, how: str) -> None:
    with support.mounted() as mount:
        result: Future[int]
        with notified(mount) as (fd, shim):
            result = pool.submit(fallocate, fd, PUNCH, 0, PAGE)
            shim.event()
            if how == "quit":
                shim.begin("quit")
            else:
                os.kill(mount.pid, signal.SIGTERM)
            while (message := shim.receive()).get("event") != "SHUTDOWN":
                pass
            assert message["data"]["reason"] == how
            # The connection has ended: any errno is right, but no call may hang.
            assert result.result(PATIENCE) in (
                0,
                errno.ENOTCONN,
                errno.ECONNABORTED,
                errno.EIO,
            )
        assert mount.process.wait(PATIENCE) == 0


def test_an_umount_sends_shutdown_to_the_peers(mount: inaccfs.Mount) -> None:
    with peer(mount.control) as shim:
        subprocess.run(["umount", mount.path], check=True)
        assert shim.event() == {"event": "SHUTDOWN", "reason": "unmounted"}


# --- page frames ----------------------------------------------------------------


def real_frames(mount: inaccfs.Mount) -> None:
    if mount.status().pfn_source != "pagemap":
        pytest.skip("the kernel shows no page frame numbers here")


def kpageflags(pfn: int) -> int:
    with open("/proc/kpageflags", "rb", buffering=0) as flags:
        return int.from_bytes(os.pread(flags.fileno(), 8, pfn * 8), sys.byteorder)


def test_frames_are_real_and_the_guest_sees_them(mount: inaccfs.Mount) -> None:
    """What one peer writes through get-memory is in the frame that another got."""
    real_frames(mount)
    with guest(mount) as fd, peer(mount.control) as shim:
        assert shim.do("getfd", fd, fdname="g") == {}
        got = shim.do("get-pfn", file="g", offset=3)
        assert got["order"] == 0
        uptodate, swapbacked = 1 << 3, 1 << 14
        assert kpageflags(got["pfn"]) & uptodate
        assert kpageflags(got["pfn"]) & swapbacked
        assert os.fstat(fd).st_blocks * 512 == PAGE
        extents = shim.do("get-pfn", file="g", offset=0, count=256)["extents"]
        assert sum(extent["count"] for extent in extents) == 256
        pfns = {
            e["offset"] + i: e["pfn"] + i for e in extents for i in range(e["count"])
        }
        assert pfns[3] == got["pfn"]
        assert len(set(pfns.values())) == 256


def test_get_pfn_of_a_huge_page_returns_its_order() -> None:
    with support.mounted(huge="always", size="64m") as mount:
        real_frames(mount)
        with guest(mount, 4 * MIB) as fd, peer(mount.control) as shim:
            shim.do("getfd", fd, fdname="g")
            got = shim.do("get-pfn", file="g", offset=5)
            if got["order"] == 0:
                pytest.skip("no huge page was to be had")
            assert got["order"] == 9
            assert got["pfn"] % 512 == 5
            (extent,) = shim.do("get-pfn", file="g", offset=1, count=511)["extents"]
            assert (extent["pfn"] % 512, extent["order"]) == (1, 9)


def test_a_punch_inside_a_fetched_huge_page_frees_memory(
    pool: ThreadPoolExecutor,
) -> None:
    """While it is pinned it could not be split."""
    with support.mounted(huge="always", size="64m") as mount:
        real_frames(mount)
        with guest(mount, 2 * MIB) as fd, peer(mount.control) as shim:
            shim.do("getfd", fd, fdname="g")
            shim.do("get-pfn", file="g", offset=0, count=512)
            before = os.fstat(fd).st_blocks
            assert fallocate(fd, PUNCH, PAGE, PAGE) == 0
            assert os.fstat(fd).st_blocks == before - PAGE // 512
            pins = shim.do("query-pins")
            assert sum(extent["count"] for extent in pins["extents"]) == 511
            (punched,) = [one for one in pins["references"] if one["punched"]]
            assert (punched["offset"], punched["count"]) == (1, 1)


def test_fetched_pages_stay_where_they_are_when_memory_is_compacted() -> None:
    """In v8 the mapping is unmovable; here pins do that."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    trigger = Path("/proc/sys/vm/compact_memory")
    if not trigger.exists():
        pytest.skip("a kernel without compaction")
    support.need_memory(256 * MIB)
    with support.mounted(size="256m") as mount:
        real_frames(mount)
        status = mount.status()
        if status.pinning != "io_uring":
            pytest.skip(f"pages are pinned by {status.pinning}")
        with guest(mount, 128 * MIB) as fd, peer(mount.control) as shim:
            os.posix_fallocate(fd, 0, 128 * MIB)
            # Every other page is punched, so that there is something to compact.
            for page in range(0, 128 * MIB // PAGE, 2):
                assert fallocate(fd, PUNCH, page * PAGE, PAGE) == 0
            shim.do("getfd", fd, fdname="g")
            pages = range(1, 16_384, 2)
            before = [
                shim.do("get-pfn", file="g", offset=page)["pfn"] for page in pages
            ]
            trigger.write_text("1")
            # The frames again, from the kernel, by a mapping in this process.
            assert shim.do("get-memory", file="g") == {}
            assert frames_of(shim.fds[0], pages) == before


def frames_of(fd: int, pages: range) -> list[int]:
    """The frames of pages, from /proc/self/pagemap of a mapping in this process."""
    found = []
    with (
        mmap.mmap(fd, (pages[-1] + 1) * PAGE) as view,
        open("/proc/self/pagemap", "rb", buffering=0) as pagemap,
    ):
        mapped = ctypes.c_char.from_buffer(view)
        address = ctypes.addressof(mapped)
        for page in pages:
            view[page * PAGE]
            entry = os.pread(pagemap.fileno(), 8, (address // PAGE + page) * 8)
            found.append(int.from_bytes(entry, sys.byteorder) & ((1 << 55) - 1))
        del mapped
    return found


def test_simulated_frames_need_no_privilege() -> None:
    found = []
    for _ in range(2):
        with (
            support.mounted(pfn_source="simulated", size="64m") as mount,
            guest(mount, 4 * MIB),
            peer(mount.control) as shim,
        ):
            assert mount.status().pfn_source == "simulated"
            found.append(shim.do("get-pfn", file="/guest", offset=0, count=1024))
    first, again = found
    assert again == first
    assert again["extents"][0]["order"] == 9


def test_fetched_memory_is_freed_with_the_file(mount: inaccfs.Mount) -> None:
    with peer(mount.control) as shim:
        with guest(mount) as fd:
            shim.do("getfd", fd, fdname="g")
            shim.do("get-pfn", file="g", offset=0, count=256)
            shim.do("closefd", fdname="g")
            for extent in shim.do("query-pins")["extents"]:
                assert (
                    shim.do(
                        "put-pfn",
                        file="/guest",
                        pfn=extent["pfn"],
                        count=extent["count"],
                    )
                    == {}
                )
        assert mount.status().allocated_pages == 256
        os.unlink(mount.path / "guest")
        support.ask_until(lambda: mount.status().allocated_pages == 0)


def test_a_full_backing_is_an_error_of_get_pfn() -> None:
    with (
        support.mounted(size="1m") as small,
        guest(small, 4 * MIB),
        peer(small.control) as shim,
    ):
        said = shim.do("get-pfn", file="/guest", offset=0, count=1024)
        assert said.startswith("ENOSPC")
        assert shim.do("query-file", file="/guest")["referenced"] == 0
        assert "pfn" in shim.do("get-pfn", file="/guest", offset=0)


# --- hostile peers --------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff\xfe garbage\n",
        b'{"execute": "\xc3\x28"}\n',
        b"[" * 60_000 + b"\n",
        b"{" * 1_048_576,
        b'{"execute": "get-pfn", "arguments": {"file": "/x", "offset": -1}}\n',
        b'{"execute": "get-pfn", "arguments": {"file": "/x", "offset": 1e300}}\n',
        b'{"execute": {}}\n' * 1000,
    ],
    ids=["garbage", "utf-8", "deep", "1 MiB", "negative", "float", "many"],
)
def test_the_mount_survives_any_input_of_a_peer(
    mount: inaccfs.Mount, data: bytes
) -> None:
    # The daemon may hang up in the middle.
    with (
        peer(mount.control) as hostile,
        suppress(BrokenPipeError, ConnectionResetError),
    ):
        hostile.socket.sendall(data)
        assert "error" in hostile.answer()
    with guest(mount) as fd, peer(mount.control) as shim:
        assert fallocate(fd, 0, 0, PAGE) == 0
        assert "qemu" in shim.do("query-version")


def test_a_peer_that_never_reads_holds_up_no_punch(
    mount: inaccfs.Mount, pool: ThreadPoolExecutor
) -> None:
    with guest(mount) as fd, peer(mount.control) as mute:
        mute.socket.setblocking(False)
        line = json.dumps({"execute": "query-commands"}).encode() + b"\n"
        try:
            while True:
                mute.socket.send(line * 100)
        except BlockingIOError:
            pass
        assert fallocate(fd, PUNCH, 0, PAGE) == 0
        with peer(mount.control) as shim:
            assert "qemu" in shim.do("query-version")


def test_two_hundred_peers_hear_of_one_punch(
    mount: inaccfs.Mount, pool: ThreadPoolExecutor
) -> None:
    with ExitStack() as stack:
        fd = stack.enter_context(guest(mount))
        peers = [stack.enter_context(peer(mount.control)) for _ in range(200)]
        for one in peers:
            one.do("register-notifier", file="/guest")
        punch = pool.submit(fallocate, fd, PUNCH, 0, PAGE)
        for one in peers:
            one.done(one.event())
        assert punch.result(PATIENCE) == 0


def test_many_threads_and_peers_at_once(mount: inaccfs.Mount) -> None:
    """Punches and fetches of one file race; no reference is lost, no call hangs."""
    stop = threading.Event()

    def answer() -> None:
        with peer(mount.control) as shim:
            shim.do("register-notifier", file="/guest")
            shim.socket.settimeout(0.1)
            while not stop.is_set():
                try:
                    event = shim.event()
                except TimeoutError:
                    continue
                shim.socket.settimeout(PATIENCE)
                shim.done(event)
                shim.socket.settimeout(0.1)

    def fetch() -> int:
        with peer(mount.control) as shim:
            for round_ in range(200):
                got = shim.do("get-pfn", file="/guest", offset=round_ % 64, count=8)
                for extent in got["extents"]:
                    assert (
                        shim.do(
                            "put-pfn",
                            file="/guest",
                            pfn=extent["pfn"],
                            count=extent["count"],
                        )
                        == {}
                    )
            return int(shim.do("query-stats")["references"])

    def punch(fd: int) -> None:
        for round_ in range(100):
            assert fallocate(fd, PUNCH, round_ % 64 * PAGE, 4 * PAGE) == 0

    with guest(mount) as fd, ThreadPoolExecutor() as threads:
        answering = threads.submit(answer)
        fetching = [threads.submit(fetch), threads.submit(fetch)]
        punching = threads.submit(punch, fd)
        try:
            for one in fetching:
                one.result(PATIENCE)
            punching.result(PATIENCE)
        finally:
            stop.set()
        answering.result(PATIENCE)
    with peer(mount.control) as shim:
        # The daemon may see the ends of connections in any order.
        support.ask_until(lambda: shim.do("query-stats")["peers"] == 1)
        assert shim.do("query-stats")["references"] == 0
        assert shim.do("query-notifiers") == []


# --- permissions ----------------------------------------------------------------


def test_the_socket_is_the_owners(mount: inaccfs.Mount) -> None:
    found = mount.control.stat()
    assert (found.st_mode & 0o777, found.st_uid) == (0o600, os.geteuid())


@support.needs_root
def test_an_allowed_user_gets_in_and_others_do_not(scratch: Path) -> None:
    scratch.chmod(0o755)
    control = scratch / "control"
    with support.mounted(
        control=control, options=["allow-uid=12345", "no-guest-access"]
    ) as mount:
        assert control.stat().st_mode & 0o777 == 0o666
        for uid, greeting in ((12345, b'{"QMP"'), (12346, b"")):
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.setresuid(uid, uid, uid)
                    with socket.socket(socket.AF_UNIX) as client:
                        client.connect(str(control))
                        os.write(write, client.recv(6))
                finally:
                    os._exit(0)
            os.close(write)
            with open(read, "rb") as said:
                assert said.read() == greeting
            os.waitpid(child, 0)
        with guest(mount), peer(control) as shim:
            assert "EPERM: this mount has --no-guest-access" in shim.do(
                "get-memory", file="/guest"
            )


def test_limits_are_options() -> None:
    with (
        support.mounted(options=["limit=fdnames=1"]) as mount,
        guest(mount) as fd,
        peer(mount.control) as shim,
    ):
        assert shim.do("getfd", fd, fdname="a") == {}
        assert "EMFILE: 1 fdnames" in shim.do("getfd", fd, fdname="b")
