"""Tracks the state that vCPUs of a VM share without a lock."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from inaccfs.kvm.mmiocache import MmioCache

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from inaccfs.explore.actor import Actor
    from inaccfs.explore.tracked_vm import Tracker
    from inaccfs.kvm import VM
    from inaccfs.kvm.sync import Lock

    Place = tuple[int, int]


class Places(dict[int, "Place"]):
    """The file and the page of each gfn in the scenario."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker
        # By actor: the gfns of the slot that it is making, which others may not see.
        self._prepared: dict[Actor | None, Mapping[int, Place]] = {}
        tracker.on_slot = self._commit

    @contextmanager
    def prepared(self, places: Mapping[int, Place]) -> Iterator[None]:
        """In a with block, the first new slot that can be found has these gfns."""
        me = self._tracker.schedule.current
        self._prepared[me] = places
        try:
            yield
        finally:
            self._prepared.pop(me, None)

    def _commit(self) -> None:
        found = self._prepared.pop(self._tracker.schedule.current, None)
        if found is not None:
            self._tracker.write("places")
            self.update(found)

    def get(self, gfn: int, default: Any = None) -> Any:  # noqa: ANN401 - a dict's
        """See `dict.get`."""
        self._tracker.read("places")
        return super().get(gfn, default)

    def __contains__(self, gfn: object) -> bool:
        self._tracker.read("places")
        return super().__contains__(gfn)

    def __iter__(self) -> Iterator[int]:
        self._tracker.read("places")
        return super().__iter__()

    def items(self) -> Any:  # noqa: ANN401 - a dict's
        """See `dict.items`."""
        self._tracker.read("places")
        return super().items()


class Modes(list["Lock"]):
    """The guest modes that a flush waits for."""

    _tracker: Tracker

    def append(self, mode: Lock) -> None:
        """Add a vCPU."""
        self._tracker.write("vcpus")
        super().append(mode)

    def __iter__(self) -> Iterator[Lock]:
        self._tracker.read("vcpus")
        return super().__iter__()


class Mmio(MmioCache):
    """All entries at once."""

    _tracker: Tracker

    def __contains__(self, gfn: int) -> bool:
        self._tracker.read("mmio")
        return super().__contains__(gfn)

    def is_valid(self, gfn: int) -> bool:
        """See `MmioCache.is_valid`."""
        self._tracker.read("mmio")
        return super().is_valid(gfn)

    def add(self, gfn: int) -> None:
        """See `MmioCache.add`."""
        self._tracker.write("mmio")
        super().add(gfn)

    def drop(self, gfn: int) -> None:
        """See `MmioCache.drop`."""
        self._tracker.write("mmio")
        super().drop(gfn)

    def next_generation(self) -> None:
        """See `MmioCache.next_generation`."""
        if self._generations:
            self._tracker.write("mmio")
        else:
            self._tracker.read("mmio")
        super().next_generation()

    def state(self) -> Hashable:
        """Which gfns have an entry, and which of them of this generation."""
        found = self._generations
        return frozenset((gfn, found[gfn] == self._generation) for gfn in found)


def watch_guest(vm: VM, tracker: Tracker) -> None:
    """Track the shared state of a VM that has no vCPU yet."""
    mmu: Any = vm._mmu
    modes = Modes()
    modes._tracker = mmu.mmio._tracker = tracker
    mmu.mmio.__class__ = Mmio
    mmu.__dict__["guest_modes"] = modes
    of_key = tracker.schedule.state.of_key
    of_key["vcpus", tracker.number, 0] = lambda: list.__len__(modes)
    of_key["mmio", tracker.number, 0] = mmu.mmio.state
