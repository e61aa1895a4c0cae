"""The closer: large files are closed in the background, and tasks can wait for that."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, cast

import pytest
import trio
import trio.testing

from inaccfs.fuse.closing import Closer
from inaccfs.shim.filestate import INLINE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.backing.root import Backing
    from inaccfs.shim.file import InaccessibleFile

LARGE = INLINE_BYTES + 4096


def unnamed(backing: Backing, length: int) -> int:
    """An fd of a file without a name that has *length* bytes allocated."""
    path = f"/proc/self/fd/{backing.root}"
    fd = os.open(path, os.O_RDWR | os.O_TMPFILE, 0o600)
    os.posix_fallocate(fd, 0, length)
    return fd


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def free(backing: Backing) -> int:
    space = os.fstatvfs(backing.root)
    return space.f_bfree * space.f_bsize


async def test_a_large_unlinked_file_is_closed_in_the_background(
    backing: Backing,
) -> None:
    closer = Closer()
    fd = unnamed(backing, LARGE)
    before = free(backing)
    async with trio.open_nursery() as nursery:
        closer.nursery = nursery
        closer.close(fd, None)
        assert closer.busy
        assert is_open(fd)
        await closer.wait_idle()
        assert not closer.busy
        assert not is_open(fd)
        assert free(backing) == before + LARGE
        assert closer.closed == 1


class HeldThreads:
    """Replaces trio.to_thread.run_sync(): each call waits until a test lets it go."""

    def __init__(self) -> None:
        self._waiting: list[trio.Event] = []

    async def __call__(
        self,
        function: Callable[[], None],
        *,
        limiter: trio.CapacityLimiter,
        abandon_on_cancel: bool,
    ) -> None:
        assert not abandon_on_cancel
        let_go = trio.Event()
        self._waiting.append(let_go)
        await let_go.wait()
        function()

    async def let_one_go(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        self._waiting.pop().set()
        await trio.testing.wait_all_tasks_blocked()


async def test_idle_is_when_all_have_been_closed(
    backing: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = HeldThreads()
    monkeypatch.setattr(trio.to_thread, "run_sync", threads)
    closer = Closer()
    idle = 0

    async def wait() -> None:
        nonlocal idle
        await closer.wait_idle()
        idle += 1

    async with trio.open_nursery() as nursery:
        closer.nursery = nursery
        # The closer may be idle, and then busy again.
        for before in range(2):
            for _ in range(2):
                closer.close(unnamed(backing, LARGE), None)
            nursery.start_soon(wait)
            await threads.let_one_go()
            assert (idle, closer.busy) == (before, True)
            await threads.let_one_go()
            assert (idle, closer.busy) == (before + 1, False)


@pytest.mark.parametrize("length", [4096, INLINE_BYTES])
async def test_a_small_one_is_closed_at_once(backing: Backing, length: int) -> None:
    closer = Closer()
    async with trio.open_nursery() as nursery:
        closer.nursery = nursery
        fd = unnamed(backing, length)
        closer.close(fd, None)
        assert not is_open(fd)
        assert not closer.busy


async def test_a_large_one_with_a_name_is_closed_at_once(backing: Backing) -> None:
    """The close frees no memory then."""
    closer = Closer()
    async with trio.open_nursery() as nursery:
        closer.nursery = nursery
        fd = unnamed(backing, LARGE)
        os.link(
            f"/proc/self/fd/{fd}",
            "named",
            src_dir_fd=backing.root,
            dst_dir_fd=backing.root,
            follow_symlinks=True,
        )
        closer.close(fd, None)
        assert not is_open(fd)
        assert not closer.busy


def test_without_a_loop_all_is_closed_at_once(backing: Backing) -> None:
    fd = unnamed(backing, LARGE)
    Closer().close(fd, None)
    assert not is_open(fd)


async def test_without_a_thread_it_waits_for_one(
    backing: Backing, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """At the limit (systemd's TasksMax) threading raises RuntimeError."""
    left = 3

    async def run_sync(
        function: Callable[[], None], *, limiter: trio.CapacityLimiter, **_: object
    ) -> None:
        nonlocal left
        left -= 1
        if left:
            raise RuntimeError("can't start new thread")
        function()

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    closer = Closer()
    async with trio.open_nursery() as nursery:
        closer.nursery = nursery
        fd = unnamed(backing, LARGE)
        closer.close(fd, None)
        await closer.wait_idle()
        assert not is_open(fd)


class BrokenFile:
    """Replaces a file whose pages cannot be released."""

    def close(self) -> None:
        raise OSError(errno.ENOMEM, "a test")


@pytest.mark.parametrize("length", [4096, LARGE])
async def test_a_file_is_closed_after_any_failure(
    backing: Backing,
    length: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the background an exception would end the mount."""
    close = os.close

    def fails(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, "a test")

    fd = unnamed(backing, length)
    closer = Closer()
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fails)
        async with trio.open_nursery() as nursery:
            closer.nursery = nursery
            closer.close(fd, cast("InaccessibleFile", BrokenFile()))
            await closer.wait_idle()
    assert not is_open(fd)
    assert "bug in dropping" in caplog.text
