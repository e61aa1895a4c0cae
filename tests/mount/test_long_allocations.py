"""Long allocations: the mount answers meanwhile, and each way to end one."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.mount import raw, support
from tests.mount.support import (
    ENVIRONMENT,
    GIB,
    MIB,
    PAGE,
    PATIENCE,
    allocated,
    ask_until,
    cli,
    complaint,
    inaccfs_command,
    new_file,
    opened,
    run,
    used,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse


def start_allocation(file: Path, size: int, mount: Mount) -> subprocess.Popen[bytes]:
    """fallocate(1) of *size* bytes, which has begun."""
    child = subprocess.Popen(["fallocate", "-l", str(size), file], env=ENVIRONMENT)
    ask_until(lambda: used(mount.path) > 0)
    return child


@contextmanager
def unfinished(mount: Mount) -> Iterator[None]:
    """During a with block an allocation has begun and does not go on."""
    workers = support.children_of(support.children_of(mount.pid)[0])
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@support.needs_root
def test_the_mount_answers_while_a_long_allocation_runs() -> None:
    support.need_memory(2 * GIB)
    with support.mounted(size="3g") as mount:
        other = new_file(mount.path / "other", PAGE)
        with start_allocation(new_file(mount.path / "file"), 2 * GIB, mount) as child:
            with unfinished(mount):
                assert os.stat(other).st_size == PAGE
                with opened(other) as fd:
                    raw.fallocate(fd, 0, 0, PAGE)
                assert allocated(other) == PAGE
                assert sorted(os.listdir(mount.path)) == ["file", "other"]
                assert mount.status().files == 2
                assert child.poll() is None
            assert child.wait(PATIENCE) == 0
        assert allocated(mount.path / "file") == 2 * GIB


@support.needs_root
def test_a_mount_that_goes_lazily_finishes_a_long_allocation() -> None:
    support.need_memory(2 * GIB)
    with support.mounted(size="3g") as mount:
        with start_allocation(new_file(mount.path / "file"), 2 * GIB, mount) as child:
            with unfinished(mount):
                complaint("umount", mount.path)
                cli("umount", "--lazy", mount.path)
                assert child.poll() is None
            assert child.wait(PATIENCE) == 0
        assert mount.process.wait(PATIENCE) == 0


@support.needs_root
def test_a_signal_to_the_daemon_ends_a_long_allocation() -> None:
    support.need_memory(2 * GIB)
    with (
        support.mounted(size="3g") as mount,
        start_allocation(new_file(mount.path / "file"), 2 * GIB, mount) as child,
        unfinished(mount),
    ):
        mount.process.terminate()
        assert mount.process.wait(PATIENCE) == 0
        assert child.wait(PATIENCE) != 0


INTERRUPTIBLE = """
import os, signal, sys
from tests.mount import raw, support
signal.signal(signal.SIGINT, lambda *_: None)
with support.opened(sys.argv[1]) as fd:
    print("ready", flush=True)
    length, mode = int(sys.argv[2]), int(sys.argv[3])
    print(support.outcome(raw.fallocate, fd, mode, 0, length), flush=True)
    found = os.fstat(fd)
    print(found.st_size, found.st_blocks, flush=True)
"""


@support.needs_root
def test_an_interrupted_allocation_leaves_the_file_as_it_was() -> None:
    """EINTR at once; later calls wait until shmem has freed all pages."""
    support.need_memory(4 * GIB)
    with support.mounted(size="6g") as mount:
        file = new_file(mount.path / "file")
        with subprocess.Popen(
            [*inaccfs_command()[:1], "-c", INTERRUPTIBLE, str(file), str(4 * GIB), "0"],
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            ask_until(lambda: used(mount.path) > 0)
            child.send_signal(signal.SIGINT)

            assert child.stdout.readline() == "EINTR\n"
            assert child.stdout.readline() == "0 0\n"
            assert child.wait(PATIENCE) == 0
        assert os.stat(file).st_blocks == 0
        assert os.stat(file).st_size == 0
        assert used(mount.path) == 0
        # Nothing of the interrupt is left: the next allocation succeeds.
        run("fallocate", "-l", 64 * MIB, file)
        assert allocated(file) == 64 * MIB


@support.needs_root
def test_an_interrupted_allocation_keeps_its_pages_where_the_rules_say_so() -> None:
    """kvm_gmem_allocate() returns EINTR and frees nothing."""
    support.need_memory(4 * GIB)
    with support.mounted(size="6g", semantics="guest_memfd") as mount:
        file = new_file(mount.path / "file")
        os.truncate(file, 4 * GIB)
        arguments = [str(file), str(4 * GIB), str(raw.KEEP_SIZE)]
        with subprocess.Popen(
            [*inaccfs_command()[:1], "-c", INTERRUPTIBLE, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            ask_until(lambda: used(mount.path) >= 64 * MIB)
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "EINTR\n"
            size, blocks = map(int, child.stdout.readline().split())
            assert child.wait(PATIENCE) == 0
        assert size == 4 * GIB
        assert 64 * MIB <= blocks * 512 < 4 * GIB
        # Nothing goes on after the call has returned.
        assert used(mount.path) == allocated(file) == blocks * 512


@support.needs_root
def test_a_process_killed_in_an_allocation_leaves_nothing() -> None:
    support.need_memory(4 * GIB)
    with support.mounted(size="6g") as mount:
        file = new_file(mount.path / "file")
        with start_allocation(file, 4 * GIB, mount) as child:
            child.kill()
            assert child.wait(PATIENCE) == -signal.SIGKILL
        assert os.stat(file).st_blocks == 0
        assert used(mount.path) == 0


@support.needs_root
def test_a_file_that_is_removed_while_it_is_allocated_goes_at_the_end() -> None:
    support.need_memory(2 * GIB)
    with support.mounted(size="3g") as mount:
        file = new_file(mount.path / "file")
        with start_allocation(file, 2 * GIB, mount) as child:
            os.unlink(file)
            assert os.listdir(mount.path) == []
            assert child.wait(PATIENCE) == 0
        support.wait_until_unused(mount.path)
