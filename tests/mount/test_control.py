"""The control socket of real mounts: fds of real files, hostile peers, permissions."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

from inaccfs.syscalls import PUNCH
from tests.mount import support
from tests.mount.control_files import fallocate, guest
from tests.mount.peers import peer
from tests.mount.support import MIB, PAGE, PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    import inaccfs


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
