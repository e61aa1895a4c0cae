"""Calls that only proposals have: conversions of a file's pages, and freezes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from inaccfs.explore import seen
from inaccfs.explore.kinds import check_kinds

if TYPE_CHECKING:
    from collections.abc import Hashable

    from inaccfs.explore.dma import ExploredIommu
    from inaccfs.explore.vm import ExploredVM
    from inaccfs.explore.world import World


def convert(
    world: World,
    user: ExploredVM | ExploredIommu,
    fd: int,
    pages: tuple[int, int],
    *,
    private: bool,
) -> None:
    """Call set-memory-attributes; the rules may refuse it."""
    schedule, (first, end) = world.schedule, pages
    word = "private" if private else "shared"
    what = f"conversion of pages [{{}}, {{}}) to {word}"
    schedule.point(f"makes [{first}, {end}) {word}")
    number = world.check_file(fd)
    schedule.touch(seen.frozen_key(number), False)
    for page in range(first, end):
        schedule.touch(seen.page_key(number, page), False)
    try:
        user.client.client.file(fd).set_memory_attributes(first, end - first, private)
    except OSError as exc:
        schedule.refuse(str(exc.strerror), what, first, end)
        return
    schedule.grant(what, first, end)
    schedule.note("the conversion returns")
    check_kinds(schedule, world.vms, world.inodes, "the conversion has returned")


def freeze(world: World, user: ExploredVM, fd: int) -> None:
    """Freeze a file, and unfreeze it; find pages that come or go in between."""
    schedule, number = world.schedule, world.check_file(fd)
    file = user.client.client.file(fd)
    schedule.point("freezes the file")
    schedule.touch(seen.frozen_key(number))
    try:
        file.freeze()
    except OSError as exc:
        schedule.refuse(str(exc.strerror), "freeze")
        return
    schedule.grant("freeze")
    before = _present(world, number)
    schedule.note("it is frozen")
    schedule.point("unfreezes it")
    schedule.touch(seen.frozen_key(number))
    if _present(world, number) != before:
        schedule.violate(
            "changed-frozen", f"file {number} has other pages than when it was frozen"
        )
    file.unfreeze()


def _present(world: World, number: int) -> Hashable:
    """The pages of a file that have memory."""
    inode, schedule = world.inodes[number], world.schedule
    for page in range(world.judge.sizes[number]):
        schedule.touch(seen.page_key(number, page), False)
    memory = inode.pages.memory
    extents = () if memory is None else tuple(memory.frames.extents())
    return os.fstat(inode.fd).st_blocks, extents
