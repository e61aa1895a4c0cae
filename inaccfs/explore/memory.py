"""Frames and their contents: guest memory is reached by frame, as in hardware."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

from inaccfs.explore import keys
from inaccfs.explore.names import STAMP, frame, shown
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.shim.simulated import FIRST_PFN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.sequence import Cells
    from inaccfs.explore.tracked_vm import Tracker
    from inaccfs.kvm.memory import Place


class Frames:
    """The frames that are in use, and their contents."""

    def __init__(self, schedule: Schedule) -> None:
        self.used: Final[set[int]] = set()
        self.contents: Final[dict[int, bytes]] = {}
        # By client and frame: the references that it has not put yet.
        self.held: Final[dict[str, Counter[int]]] = defaultdict(Counter)
        self._schedule: Final = schedule

    def watch(self, taken: bool, start: int, count: int) -> None:
        """See `inaccfs.shim.buddy.Buddy`."""
        schedule = self._schedule
        frames = range(FIRST_PFN + start, FIRST_PFN + start + count)
        if schedule.tracks:
            # The next frame to be allocated depends on the order of all these calls.
            schedule.touch("frames")
            for pfn in frames:
                schedule.touch(("frame", pfn))
        if taken:
            self.used.update(frames)
            for pfn in frames:
                self.contents.pop(pfn, None)
            return
        self.used.difference_update(frames)
        for pfn in frames:
            schedule.note(f"frame {frame(pfn)} is FREE")
            for who, held in self.held.items():
                if schedule.runs and held[pfn] > 0:
                    schedule.violate(
                        "freed-held",
                        f"frame {frame(pfn)} is freed, and {who} has a reference to it",
                    )


class GuestBytes:
    """The guest memory of one VM. See `inaccfs.kvm.memory.GuestMemory`."""

    def __init__(
        self,
        schedule: Schedule,
        tracker: Tracker,
        frames: Frames,
        cells: Cells,
        places: Mapping[int, tuple[int, int]],
    ) -> None:
        """*places* has the file and page of each gfn, as the scenario says."""
        self._schedule: Final = schedule
        self._tracker: Final = tracker
        self._frames: Final = frames
        self._cells: Final = cells
        self._places: Final = places

    def read(self, place: Place, size: int) -> bytes:
        """See `inaccfs.kvm.memory.GuestMemory`."""
        file, page = self._reach(place, write=False)
        value = self._frames.contents.get(place.pfn, bytes(STAMP))[:size]
        self._schedule.note(f"reads {shown(value)} from frame {frame(place.pfn)}")
        self._cells.read(file, page, value)
        return value

    def write(self, place: Place, data: memoryview) -> None:
        """See `inaccfs.kvm.memory.GuestMemory`."""
        file, page = self._reach(place, write=True)
        value = bytes(data)
        self._frames.contents[place.pfn] = value
        self._schedule.note(f"writes {shown(value)} to frame {frame(place.pfn)}")
        self._cells.write(file, page, value)

    def _reach(self, place: Place, *, write: bool) -> tuple[int, int]:
        schedule = self._schedule
        # By the scenario, and not by the KVM, whose arithmetic may be wrong.
        found = self._places.get(place.gpa // PAGE_SIZE)
        file, page = found or (
            self._tracker.windows[id(place.window)],
            place.position // PAGE_SIZE,
        )
        if schedule.tracks:
            schedule.touch(("frame", place.pfn), write)
            schedule.touch(keys.cell(file, page), write)
        if place.pfn not in self._frames.used:
            who = "the setup" if schedule.current is None else schedule.current.name
            schedule.violate(
                "use-after-free",
                f"{who} uses page {page} through frame {frame(place.pfn)}, which is "
                "free",
            )
        return file, page
