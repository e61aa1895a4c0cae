"""The values of keys: the state of the real objects.

Equal states must have equal values. Numbers that may be below zero become text, as
hash(-1) is hash(-2).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from inaccfs.explore.retrying import CountedInvalidation
from inaccfs.explore.sync import LOT
from inaccfs.kvm.pagetable import PageTable
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.shim.attributes import Attributes
from inaccfs.shim.holes import first_hole
from inaccfs.shim.simulated import FIRST_PFN

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from inaccfs.explore.changes import Punch
    from inaccfs.explore.dma import ExploredIommu
    from inaccfs.explore.files import Files
    from inaccfs.explore.memory import Frames
    from inaccfs.explore.sequence import Cells
    from inaccfs.explore.state import State
    from inaccfs.explore.sync import Loop
    from inaccfs.explore.vm import ExploredVM


class Values:
    """The functions that return the values of keys, which have indexes into lists."""

    def __init__(
        self,
        state: State,
        *,
        vms: Sequence[ExploredVM],
        iommus: Sequence[ExploredIommu],
        notifiers: Sequence[object],
        files: Files,
        punches: Mapping[int, Punch],
        cells: Cells,
        frames: Frames,
        source: object,
        loop: Loop,
    ) -> None:
        """*source* allocates the frames."""
        self._vms: Final = vms
        self._iommus: Final = iommus
        self._made: Final = notifiers
        self._files: Final = files
        self._punches: Final = punches
        self._cells: Final = cells
        self._in_use: Final = frames
        self._source: Final[Any] = source
        self._loop: Final = loop
        state.of_kind.update(
            {
                "spte": self._spte,
                "places": self._places,
                "attributes": self._attributes,
                "seq": self._seq,
                "in progress": self._in_progress,
                "list": self._list,
                "locked": self._locked,
                "answers": self._answers,
                "page": self._page,
                "size": self._size,
                "kind": self._kind,
                "frozen": self._frozen,
                "references": self._references,
                "frame": self._frame,
                "frames": self._frames,
                "cell": self._cell,
                "connected": self._connected,
                "running": self._running,
                "events": self._events,
                "punching": self._punching,
                LOT: self._lot,
            }
        )

    # --- of a VM ----------------------------------------------------------------------

    def _spte(self, vm: int, gfn: int) -> Hashable:
        mmu = self._vms[vm]._mmu
        return (
            PageTable.walk(mmu.table, gfn) or 0,
            PageTable.walk(mmu.shared_table, gfn) or 0,
        )

    def _places(self, vm: int, _: int) -> Hashable:
        return frozenset(dict.items(self._vms[vm].places))

    def _attributes(self, vm: int, _: int) -> Hashable:
        return tuple(self._vms[vm]._mmu.attributes._bounds)

    def _seq(self, vm: int, _: int) -> Hashable:
        return self._invalidation(vm)._seq

    def _in_progress(self, vm: int, _: int) -> Hashable:
        one = self._invalidation(vm)
        count = one._in_progress
        return (str(count), one.range_start, one.range_end) if count > 0 else str(count)

    def _invalidation(self, vm: int) -> CountedInvalidation:
        found = self._vms[vm]._mmu.invalidation
        assert isinstance(found, CountedInvalidation)
        return found

    def _events(self, name: str) -> Hashable:
        due: list[Any] = self._client(name)._events
        return tuple(
            (_number(one.notifier), one.notice[:3], one.sequence) for one in due
        )

    def _connected(self, name: str) -> Hashable:
        client = self._client(name).client
        return client.lost is None, tuple(
            _number(each) for each in self._notifiers(client) if each._leaving
        )

    def _running(self, name: str) -> Hashable:
        found = (
            (_number(each), len(each._running), _begun(each.callbacks.invalidate_start))
            for each in self._notifiers(self._client(name).client)
        )
        # A new notifier has done nothing yet: who registers it need not look here.
        return tuple(one for one in found if any(one[1:]))

    def _client(self, name: str) -> Any:  # noqa: ANN401
        users: Any = (*self._vms, *self._iommus)
        return next(each.client for each in users if each.client.name == name)

    def _notifiers(self, client: object) -> list[Any]:
        made: Any = self._made
        return [each for each in made if each.file.client is client]

    # --- of a file --------------------------------------------------------------------

    def _file(self, number: int) -> Any:  # noqa: ANN401 - it is frozen by a client
        return self._files.inodes[number]

    def _list(self, file: int, _: int) -> Hashable:
        registered: Any = self._file(file).notifiers._registered
        return tuple((_number(one), place) for one, place in registered.items())

    def _locked(self, file: int, _: int) -> Hashable:
        return bool(self._file(file).notifiers.__dict__["running"])

    def _answers(self, file: int, _: int) -> Hashable:
        notifiers: Any = self._file(file).notifiers
        return (
            notifiers._sequence,
            tuple((_number(one), sent) for one, sent in notifiers._awaited.items()),
            tuple(sorted(_number(one) for one in notifiers._leaving)),
        )

    def _page(self, number: int, page: int) -> Hashable:
        file = self._file(number)
        memory = file.pages.memory
        known = None if memory is None else memory.frames.known(page, page + 1)
        poisoned = page in file.pages.poisoned._pages
        if known:
            return known[0].pfn, poisoned
        return first_hole(file.fd, PAGE_SIZE, page, page + 1) is None, poisoned

    def _size(self, file: int, _: int) -> Hashable:
        """Its size, and what is known of the sizes that it has had."""
        return os.fstat(self._file(file).fd).st_size, self._files.sizes[file]

    def _kind(self, file: int, page: int) -> Hashable:
        return Attributes.is_private(self._file(file).attributes, page)

    def _frozen(self, file: int) -> Hashable:
        client = self._file(file).frozen_by
        return 0 if client is None else client.who

    def _cell(self, file: int, page: int) -> Hashable:
        return self._cells.state(file, page)

    def _punching(self, file: int) -> Hashable:
        return frozenset(
            (who, punch.pages, frozenset(punch.left))
            for who, punch in self._punches.items()
            if punch.file == file
        )

    def _lot(self) -> Hashable:
        locks = [file.pages._locks for file in self._files.inodes]
        return self._loop.unparked, tuple(
            () if each is None else tuple(each._claims.values()) for each in locks
        )

    # --- of frames --------------------------------------------------------------------

    def _frame(self, pfn: int) -> Hashable:
        frames = self._in_use
        return pfn in frames.used, frames.contents.get(pfn, 0)

    def _frames(self) -> Hashable:
        buddy = self._source.buddy
        return (
            buddy._untouched,
            tuple(sorted(buddy._orders.items())),
            tuple(self._source.poisoned),
        )

    def _references(self, pfn: int) -> Hashable:
        found = []
        for number, file in enumerate(self._files.inodes):
            if (memory := file.pages.memory) is None:
                continue
            ranges_of: dict[Any, Any] = memory.references._ranges
            for holder, ranges in ranges_of.items():
                if (lots := ranges.get(pfn)) is not None:
                    found.append((number, type(holder).__name__, holder.who, lots))
            punched: Any = memory.frames
            if punched._punched.get(pfn - FIRST_PFN):
                found.append((number, "", 0, ()))
        held = self._in_use.held.items()
        kept = [(name, str(each[pfn])) for name, each in held if each[pfn]]
        return (*sorted(found), *kept)


def _number(notifier: object) -> Any:  # noqa: ANN401 - a key
    """Which of all notifiers it is: that of its class is for traces, and always 0."""
    return vars(notifier)["number"]


def _begun(callback: object) -> int:
    """How many invalidations a slot's notifier has begun."""
    return getattr(getattr(callback, "owner", None), "_begun", 0)
