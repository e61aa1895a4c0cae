"""The trio client against real mounts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import trio

from inaccfs.client import ConnectionLostError, aio
from tests.mount import support
from tests.mount.client.files import punch
from tests.mount.support import MIB, PATIENCE

if TYPE_CHECKING:
    import inaccfs

pytestmark = pytest.mark.fuse


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
