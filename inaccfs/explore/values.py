"""The values of keys: the state of the real objects.

Equal states must have equal values. Numbers that may be below zero become text, as
hash(-1) is hash(-2).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final, Protocol

from inaccfs.explore.names import STAMP
from inaccfs.explore.retrying import CountedInvalidation
from inaccfs.explore.sync import LOT
from inaccfs.kvm.pagetable import PageTable
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.shim.simulated import FIRST_PFN

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from inaccfs.explore.memory import Frames
    from inaccfs.explore.sequence import Cells
    from inaccfs.explore.state import State
    from inaccfs.explore.sync import Loop
    from inaccfs.explore.vm import ExploredVM
    from inaccfs.inprocess import Mount
    from inaccfs.shim.file import InaccessibleFile


class World(Protocol):
    """The objects that values are read from. Keys have indexes into the lists."""

    @property
    def vms(self) -> Sequence[ExploredVM]:
        """The VMs."""

    @property
    def iommus(self) -> Sequence[object]:
        """The IOMMUs."""

    @property
    def inodes(self) -> Sequence[InaccessibleFile]:
        """The files."""

    @property
    def notifiers(self) -> Sequence[object]:
        """All notifiers that ever existed."""

    @property
    def punches(self) -> Mapping[int, Any]:
        """The punches in progress, by actor."""

    @property
    def mount(self) -> Mount:
        """The mount."""

    @property
    def loop(self) -> Loop:
        """The loop of the shim."""

    @property
    def frames(self) -> Frames:
        """The frames and their contents."""

    @property
    def cells(self) -> Cells:
        """The values that reads may return."""


class Values:
    """The functions that return the values of one world's keys."""

    def __init__(self, world: World, state: State) -> None:
        self._world: Final = world
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
        mmu = self._world.vms[vm]._mmu
        return (
            PageTable.walk(mmu.table, gfn) or 0,
            PageTable.walk(mmu.shared_table, gfn) or 0,
        )

    def _places(self, vm: int, _: int) -> Hashable:
        return frozenset(dict.items(self._world.vms[vm].places))

    def _attributes(self, vm: int, _: int) -> Hashable:
        return tuple(self._world.vms[vm]._mmu.attributes._bounds)

    def _seq(self, vm: int, _: int) -> Hashable:
        return self._invalidation(vm)._seq

    def _in_progress(self, vm: int, _: int) -> Hashable:
        one = self._invalidation(vm)
        count = one._in_progress
        return (str(count), one.range_start, one.range_end) if count > 0 else str(count)

    def _invalidation(self, vm: int) -> CountedInvalidation:
        found = self._world.vms[vm]._mmu.invalidation
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
        users: Any = (*self._world.vms, *self._world.iommus)
        return next(each.client for each in users if each.client.name == name)

    def _notifiers(self, client: object) -> list[Any]:
        made: Any = self._world.notifiers
        return [each for each in made if each.file.client is client]

    # --- of a file --------------------------------------------------------------------

    def _file(self, number: int) -> InaccessibleFile:
        return self._world.inodes[number]

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
        size = os.fstat(file.fd).st_size
        return size, _is_there(file.fd, page), poisoned

    def _cell(self, file: int, page: int) -> Hashable:
        cell = self._world.cells._cells.get((file, page))
        if cell is None:
            return 0, frozenset([(bytes(STAMP), False)])
        begun = cell.begun if cell.punches else 1 << 30
        return cell.punches, frozenset(
            [(value, at >= begun) for value, at in cell.allowed.items()]
        )

    def _punching(self, file: int) -> Hashable:
        punches = self._world.punches.items()
        return frozenset(each for each in punches if each[1].file == file)

    def _lot(self) -> Hashable:
        locks = [file.pages._locks for file in self._world.inodes]
        return self._world.loop.unparked, tuple(
            () if each is None else tuple(each._claims.values()) for each in locks
        )

    # --- of frames --------------------------------------------------------------------

    def _frame(self, pfn: int) -> Hashable:
        frames = self._world.frames
        return pfn in frames.used, frames.contents.get(pfn, 0)

    def _frames(self) -> Hashable:
        source: Any = self._world.mount.superblock.frames
        buddy = source.buddy
        return (
            buddy._untouched,
            tuple(sorted(buddy._orders.items())),
            tuple(source.poisoned),
        )

    def _references(self, pfn: int) -> Hashable:
        found = []
        for number, file in enumerate(self._world.inodes):
            if (memory := file.pages.memory) is None:
                continue
            ranges_of: dict[Any, Any] = memory.references._ranges
            for holder, ranges in ranges_of.items():
                if (lots := ranges.get(pfn)) is not None:
                    found.append((number, holder.who, lots))
            punched: Any = memory.frames
            if punched._punched.get(pfn - FIRST_PFN):
                found.append((number, 0, ()))
        held = self._world.frames.held.items()
        kept = [(name, str(each[pfn])) for name, each in held if each[pfn]]
        return (*sorted(found), *kept)


def _number(notifier: object) -> Any:  # noqa: ANN401 - a key
    """Which of all notifiers it is: that of its class is for traces, and always 0."""
    return vars(notifier)["number"]


def _begun(callback: object) -> int:
    """How many invalidations a slot's notifier has begun."""
    return getattr(getattr(callback, "owner", None), "_begun", 0)


def _is_there(fd: int, page: int) -> bool:
    """Whether the backing has memory for a page."""
    at = page * PAGE_SIZE
    try:
        return os.lseek(fd, at, os.SEEK_DATA) == at
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
        return False
