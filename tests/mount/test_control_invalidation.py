"""Invalidation by the control socket of real mounts: real punches wait for peers."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.mount import support
from tests.mount.control_files import fallocate, guest
from tests.mount.peers import Peer, peer
from tests.mount.support import MIB, PAGE, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future, ThreadPoolExecutor


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
