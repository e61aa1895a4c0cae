"""The states of a file's pages, as extents, for a map of the file.

The state of a page comes from several layers, each with its own extents: the backing
(is there memory), the frames (has it been fetched, and the order of its folio), the
references, poison, and the event in progress. A rule that keeps something else for each
page adds a layer.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from inaccfs.mmcalls import cannot_count, pages_there
from inaccfs.shim.frames import in_pieces
from inaccfs.shim.references import PAGES_A_STEP
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.frames import Extent

    # A start, an end, and the members of `State` for the pages between these.
    Layer: TypeAlias = Sequence[tuple[int, int, dict[str, Any]]]

HOLE: Final = "hole"
ALLOCATED: Final = "allocated"
UNKNOWN: Final = "unknown"


class State(NamedTuple):
    """The state of a page."""

    # "hole" or "allocated"; "unknown" if the kernel does not say.
    memory: str = UNKNOWN
    # Whether get-pfn has fetched it; and if so, the order of its folio.
    fetched: bool = False
    order: int = 0
    # Whether anybody has a reference to it.
    referenced: bool = False
    poisoned: bool = False
    # Whether an event that reports it waits for answers, or the bracketed change is in
    # progress.
    invalidating: bool = False
    # Its attribute, in semantics that keep one; None in others.
    private: bool | None = None


class Run(NamedTuple):
    """Pages from *start* to *end* that are all in one state."""

    start: int
    end: int
    state: State


async def page_states(
    file: InaccessibleFile, start: int, most: int
) -> tuple[list[Run], int | None]:
    """The first *most* runs from page *start* on, and where the next begins, if any.

    They cover all pages up to the end of the file. Many pages take a while, and the
    result may or may not show changes that happen meanwhile.

    Raises:
        OSError: there is no free fd for the file.
    """
    superblock, page_size, end = file.superblock, file.page_size, file.count
    if start >= end:
        return [], None
    # Use a duplicate: the file's own fd may be closed meanwhile, if fds run out.
    fd = os.dup(file.fd)
    try:
        memory = await superblock.loop.in_thread(
            partial(_memory, fd, page_size, start, end, most),
            limiter=superblock.threads.fetches,
        )
    finally:
        os.close(fd)
    stop = memory[-1][1]
    extents: list[Extent] = []
    if file.pages.memory is not None:
        extents = file.pages.memory.frames.extents_since(start, most)
        if len(extents) == most:
            stop = min(stop, extents[-1].offset + extents[-1].count)
    fetched = [
        (offset, offset + count, {"fetched": True, "order": order})
        for offset, _, count, order in extents
    ]
    referenced, stop = await _referenced(file, extents, stop, most)
    if superblock.converts:
        attributes = _attributes(file, start, stop, most)
        stop = min(stop, attributes[-1][1])
    else:
        attributes = []
    layers = (memory, fetched, referenced, attributes, *_others(file, start, stop))
    runs = list(_merged(start, stop, layers))
    if len(runs) > most:
        stop = runs[most].start
        del runs[most:]
    return runs, stop if stop < end else None


# --- layers -----------------------------------------------------------------------


def _memory(fd: int, page_size: int, start: int, end: int, most: int) -> Layer:
    """The ranges with memory, up to *most* extents. Blocks."""
    try:
        found = memory_extents(fd, page_size, start, end, most)
    except OSError as exc:
        if not cannot_count(exc):
            raise
        blocks = os.fstat(fd).st_blocks
        found = [(start, end, UNKNOWN if blocks else HOLE)]
    return [(first, stop, {"memory": kind}) for first, stop, kind in found]


def memory_extents(
    fd: int, page_size: int, start: int, end: int, most: int
) -> list[tuple[int, int, str]]:
    """The first *most* extents of holes and of memory, from *start* on. Blocks.

    By cachestat(2): lseek(2) and mincore(2) report a page as a hole if it was allocated
    and nobody has touched it.
    """
    found: list[tuple[int, int, str]] = []
    # The ranges that are still to be looked at, in reverse order.
    left = [(start, end)]
    while left:
        first, stop = left.pop()
        pages = stop - first
        there = pages_there(fd, first * page_size, pages * page_size)
        if 0 < there < pages and pages > 1:
            middle = (first + stop) // 2
            left += [(middle, stop), (first, middle)]
            continue
        kind = ALLOCATED if there else HOLE
        if found and found[-1][2] == kind:
            found[-1] = (found[-1][0], stop, kind)
        elif len(found) == most:
            break
        else:
            found.append((first, stop, kind))
    return found


async def _referenced(
    file: InaccessibleFile, extents: list[Extent], stop: int, most: int
) -> tuple[Layer, int]:
    """The referenced ones of the fetched pages, and where the list ends."""
    found: list[tuple[int, int, dict[str, Any]]] = []
    slices = Slices(file.superblock.loop)
    for piece in in_pieces(extents, PAGES_A_STEP, file.page_size):
        if piece.offset >= stop or (memory := file.pages.memory) is None:
            break
        places = memory.references.places([piece])
        found += [(*place, {"referenced": True}) for place in places]
        if len(found) >= most:
            return found, min(piece.offset + piece.count, stop)
        await slices.give()
    return found, stop


def _attributes(file: InaccessibleFile, start: int, stop: int, most: int) -> Layer:
    """Which pages are private, up to *most* extents."""
    found = islice(file.attributes.since(start, stop), most)
    return [(first, last, {"private": private}) for first, last, private in found]


def _others(file: InaccessibleFile, start: int, stop: int) -> Iterator[Layer]:
    poisoned = file.pages.poisoned.within(start, stop)
    yield [(page, page + 1, {"poisoned": True}) for page in poisoned]
    if (place := file.notifiers.invalidating) is not None:
        yield [(*place, {"invalidating": True})]


# --- joining them -----------------------------------------------------------------


def _merged(start: int, stop: int, layers: Iterable[Layer]) -> Iterator[Run]:
    """One run for each change in any of the *layers*, whose extents do not overlap."""
    # By page: the members that change there.
    changes: dict[int, dict[str, Any]] = {}
    for layer in layers:
        for first, last, state in layer:
            first, last = max(first, start), min(last, stop)
            if first < last:
                # A member that ends here may begin again here: do not reset it then.
                ended = {name: State._field_defaults[name] for name in state}
                changes[first] = changes.get(first, {}) | state
                changes[last] = ended | changes.get(last, {})
    run = Run(start, start, State())
    for place in sorted(changes):
        following = run.state._replace(**changes[place])
        if following != run.state:
            if run.start < place:
                yield run._replace(end=place)
            run = Run(place, place, following)
    if run.start < stop:
        yield run._replace(end=stop)
