"""Interrupted allocations that keep what they have allocated."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio

from inaccfs import syscalls
from inaccfs.semantics import V8
from inaccfs.shim.allocating import INTERRUPT_CHECK_BYTES
from inaccfs.shim.file import InaccessibleFile
from inaccfs.shim.headroom import Headroom
from inaccfs.shim.superblock import Superblock
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE
from tests.unit.fakes import fallocate, refused
from tests.unit.one_file import mine
from tests.unit.shim_files import LONG, PAGE, pages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.blocked_fakes import BlockedAllocator


class Keeps(V8):
    """v8, but an interrupt leaves what was allocated, as in guest_memfd."""

    on_interrupt = "kept"


@pytest.fixture
def keeping(blocked: BlockedAllocator) -> Iterator[InaccessibleFile]:
    fd = os.memfd_create("backing")
    yield InaccessibleFile(fd, Superblock(Keeps(), PAGE, allocator=blocked))
    os.close(fd)


async def test_an_interrupt_leaves_the_pieces_that_are_allocated(
    keeping: InaccessibleFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kvm_gmem_allocate() breaks out of its loop, and frees nothing."""
    interrupted = trio.Event()
    token = trio.lowlevel.current_trio_token()
    real = syscalls.fallocate
    calls: list[tuple[int, ...]] = []

    def allocate(*arguments: int) -> None:
        calls.append(arguments)
        real(*arguments)
        if len(calls) == 2:
            trio.from_thread.run_sync(interrupted.set, trio_token=token)

    monkeypatch.setattr("inaccfs.shim.allocating.INTERRUPT_CHECK_BYTES", 8 * PAGE)
    monkeypatch.setattr("inaccfs.shim.filestate.INLINE_BYTES", PAGE)
    file = InaccessibleFile(keeping.fd, keeping.superblock)
    monkeypatch.setattr(syscalls, "fallocate", allocate)
    with refused(errno.EINTR):
        await fallocate(file, FALLOC_FL_KEEP_SIZE, PAGE, 20 * PAGE, interrupted)
    mode, length = FALLOC_FL_KEEP_SIZE, 8 * PAGE
    assert calls == [
        (file.fd, mode, PAGE, length),
        (file.fd, mode, PAGE + length, length),
    ]
    assert pages(file) == 16
    assert not file.turn.taken
    # The rest is allocated when it is asked for again.
    await fallocate(file, mode, PAGE, 20 * PAGE, trio.Event())
    assert calls[-1] == (file.fd, mode, 17 * PAGE, 4 * PAGE)
    assert pages(file) == 20


async def test_a_call_interrupted_before_it_begins_changes_nothing(
    keeping: InaccessibleFile,
) -> None:
    interrupted = trio.Event()
    interrupted.set()
    with refused(errno.EINTR):
        await fallocate(keeping, 0, 0, LONG, interrupted)
    assert pages(keeping) == 0


async def test_near_a_limit_pieces_are_the_allocators(
    keeping: InaccessibleFile,
    blocked: BlockedAllocator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Then the OOM killer kills a worker, and not the daemon."""
    monkeypatch.setattr(keeping._headroom, "allows", lambda length: False)
    blocked.let_go()
    await fallocate(keeping, 0, 0, 2 * INTERRUPT_CHECK_BYTES, trio.Event())
    assert blocked.arguments == (
        keeping.fd,
        0,
        INTERRUPT_CHECK_BYTES,
        INTERRUPT_CHECK_BYTES,
    )
    assert blocked.most == 1


@pytest.mark.parametrize("on_interrupt", ["kept", "undone"])
async def test_a_long_allocation_counts_once(
    blocked: BlockedAllocator, on_interrupt: str, tmp_path: Path
) -> None:
    """Otherwise the limits of memory cgroups would be read too early."""
    headroom = Headroom(str(tmp_path))
    assert headroom.allows(PAGE)
    headroom.left = 1 << 30
    fd = os.memfd_create("backing")
    rules = mine(Keeps, on_interrupt=on_interrupt)
    shim = Superblock(rules, PAGE, allocator=blocked, headroom=headroom)
    length = INTERRUPT_CHECK_BYTES + PAGE
    await fallocate(InaccessibleFile(fd, shim), 0, 0, length, trio.Event())
    assert headroom.left == (1 << 30) - length
    os.close(fd)
