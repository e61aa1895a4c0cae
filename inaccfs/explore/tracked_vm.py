"""Tracks what steps touch: shared state of the KVM and the shim, by keys.

Each object whose state actors share gets a subclass that tracks it: see `watch_vm` and
`watch_notifiers`. Setting an attribute that is not tracked raises `UntrackedError`, as
a search that overlooks a conflict would wrongly say "complete".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from inaccfs.explore import keys
from inaccfs.explore.names import MOST_PAGES
from inaccfs.kvm.attributes import MemoryAttributes
from inaccfs.kvm.backing import BackingFile
from inaccfs.kvm.memslots import MemorySlot, MemorySlots
from inaccfs.kvm.mmu import Mmu
from inaccfs.kvm.pagetable import PageTable

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Mapping

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.state import Key
    from inaccfs.kvm import VM
    from inaccfs.kvm.pagetable import ByLevel, Run
    from inaccfs.kvm.uapi import Spte
    from inaccfs.shim.notifiers import Notifier


class UntrackedError(Exception):
    """Shared state has been changed that the explorer does not track."""


class Tracker:
    """What is needed to track the state of one VM, or of one file."""

    def __init__(
        self,
        schedule: Schedule,
        number: int,
        frame: Callable[[int], str],
        files: Mapping[int, int],
        notifiers: list[Notifier],
    ) -> None:
        """*frame* names a pfn for people; *files* are numbers of files, by st_ino.

        Each notifier that is registered is added to *notifiers*.
        """
        self.notifiers: Final = notifiers
        self.schedule: Final = schedule
        self.number: Final = number
        self.frame: Final = frame
        # The number of the file that a window shows, by the window's id(); and the
        # number of each file, by st_ino.
        self.windows: Final[dict[int, int]] = {}
        self.files: Final = files
        # The key of each slot that ever existed.
        self.slots: Final[dict[MemorySlot, Key]] = {}
        # Called when a new slot can be found.
        self.on_slot: Callable[[], object] = bool

    def read(self, kind: str, place: int = 0) -> None:
        """This step reads a part of the state."""
        if self.schedule.tracks:
            self.schedule.touch((kind, self.number, place), False)

    def add_slot(self, slot: MemorySlot) -> None:
        """Give a slot a key, whose value is the slot's count of users."""
        if slot not in self.slots:
            self.on_slot()
            key = self.slots[slot] = self.schedule.number("slot")
            self.schedule.state.of_key[key] = lambda: _USERS.__get__(slot)

    def add_window(self, backing: BackingFile) -> None:
        """Give a file's window a key, whose value is the window's length."""
        key = "window", self.number, self.files[backing.ino]
        self.schedule.state.of_key[key] = lambda: len(backing.__dict__["window"] or b"")

    def write(self, kind: str, place: int = 0) -> None:
        """This step changes a part of the state."""
        if self.schedule.tracks:
            self.schedule.touch((kind, self.number, place))


def become(one: object, kind: type, tracker: Tracker) -> None:
    """Make *one* an object of a class that tracks it."""
    one.__dict__["_tracker"] = tracker
    object.__setattr__(one, "__class__", kind)


def _refuse(one: object, name: str) -> None:
    raise UntrackedError(
        f"{type(one).__bases__[0].__name__}.{name} is shared, and the explorer does "
        "not track it: see inaccfs/explore/tracked_vm.py"
    )


class Table(PageTable):
    """A page table, tracked by gfn."""

    _tracker: Tracker

    def __setattr__(self, name: str, value: object) -> None:
        _refuse(self, name)

    def walk(self, gfn: int) -> Spte | None:
        """See `PageTable.walk`."""
        self._tracker.read("spte", gfn)
        return super().walk(gfn)

    def map_huge(self, gfn: int, pfn: int, level: int) -> None:
        """See `PageTable.map_huge`."""
        _refuse(self, "map_huge")

    def map_pages(self, gfn: int, pfn: int, count: int) -> int:
        """See `PageTable.map_pages`."""
        tracker = self._tracker
        for index in range(count):
            tracker.write("spte", gfn + index)
            frame = tracker.frame(pfn + index)
            tracker.schedule.note(f"installs gfn {gfn + index} -> frame {frame}")
        return super().map_pages(gfn, pfn, count)

    def zap(self, start: int, end: int) -> ByLevel:
        """See `PageTable.zap`."""
        tracker = self._tracker
        if end - start > MOST_PAGES:
            _refuse(self, f"zap of {end - start} pages")
        for gfn in range(start, end):
            if (spte := super().walk(gfn)) is None:
                tracker.read("spte", gfn)
            else:
                tracker.write("spte", gfn)
                tracker.schedule.note(
                    f"zaps gfn {gfn} -> frame {tracker.frame(spte.pfn)}"
                )
        return super().zap(start, end)

    def walked(self, start: int, end: int) -> list[Run]:
        """See `PageTable.walked`."""
        self._check("walked")
        return super().walked(start, end)

    def copy(self) -> PageTable:
        """See `PageTable.copy`."""
        self._check("copy")
        return super().copy()

    def count(self) -> ByLevel:
        """See `PageTable.count`."""
        self._check("count")
        return super().count()

    def _check(self, name: str) -> None:
        """Reads of the whole table are not tracked."""
        if self._tracker.schedule.runs:
            _refuse(self, name)


class Attributes(MemoryAttributes):
    """The attributes of a VM, tracked as a whole."""

    _tracker: Tracker

    def __setattr__(self, name: str, value: object) -> None:
        if name != "_bounds":
            _refuse(self, name)
        self._tracker.write("attributes")
        self.__dict__[name] = value

    def is_private(self, gfn: int) -> bool:
        """See `MemoryAttributes.is_private`."""
        self._tracker.read("attributes")
        return super().is_private(gfn)

    def run(self, gfn: int, limit: int) -> tuple[bool, int]:
        """See `MemoryAttributes.run`."""
        self._tracker.read("attributes")
        return super().run(gfn, limit)

    def set(self, start: int, end: int, *, private: bool) -> bool:
        """See `MemoryAttributes.set`."""
        self._tracker.read("attributes")
        changed = super().set(start, end, private=private)
        if changed:
            word = "private" if private else "shared"
            self._tracker.schedule.note(f"gfns [{start}, {end}) are {word} now")
        return changed

    def mixed(self, start: int, end: int) -> bool:
        """See `MemoryAttributes.mixed`."""
        self._tracker.read("attributes")
        return super().mixed(start, end)


_USERS: Final[Any] = MemorySlot.__dict__["users"]


class Slot(MemorySlot):
    """A slot: its count of users is tracked; threads wait until it is 0."""

    __slots__ = ()

    @property
    def number(self) -> Key:
        """The slot's key; None without private memory."""
        return None if (tracker := self._seen) is None else tracker.slots[self]

    @property
    def _seen(self) -> Tracker | None:
        return self.backing._tracker if isinstance(self.backing, Backing) else None

    def __setattr__(self, name: str, value: object) -> None:
        if name != "users":
            _refuse(self, name)
        if (tracker := self._seen) is not None:
            tracker.schedule.count(tracker.slots[self])
        _USERS.__set__(self, value)

    @property
    def users(self) -> int:  # type: ignore[override]
        """See `MemorySlot`. Only a thread that waits until it is 0 reads it."""
        if (tracker := self._seen) is not None and tracker.schedule.asks:
            tracker.schedule.touch(tracker.slots[self])
        found: int = _USERS.__get__(self)
        return found


class Backing(BackingFile):
    """A file: its window is tracked; `slots` and the memory have a lock each."""

    _tracker: Tracker

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("slots", "_memory", "window"):
            _refuse(self, name)
        object.__setattr__(self, name, value)

    @property
    def window(self) -> mmap.mmap | None:
        """See `BackingFile`."""
        self._tracker.read("window", self._tracker.files[self.ino])
        found: mmap.mmap | None = self.__dict__["window"]
        return found

    @window.setter
    def window(self, value: mmap.mmap | None) -> None:
        tracker = self._tracker
        if value is not None and tracker.schedule.tracks:
            # It ends where the file does.
            tracker.schedule.touch(keys.size(tracker.files[self.ino]), False)
        if value is not self.__dict__["window"]:
            tracker.write("window", tracker.files[self.ino])
        tracker.windows[id(value)] = tracker.files[self.ino]
        self.__dict__["window"] = value


class TrackedMmu(Mmu):
    """An MMU: `slots` is tracked, as it is read without a lock."""

    _tracker: Tracker

    def __setattr__(self, name: str, value: object) -> None:
        if name != "slots":
            _refuse(self, name)
        object.__setattr__(self, name, value)

    @property
    def slots(self) -> MemorySlots:
        """See `Mmu`."""
        self._tracker.read("slots")
        found: MemorySlots = self.__dict__["slots"]
        return found

    @slots.setter
    def slots(self, value: MemorySlots) -> None:
        self._tracker.write("slots")
        for slot in value.slots:
            self._tracker.add_slot(slot)
            object.__setattr__(slot, "__class__", Slot)
            backing = slot.backing
            if backing is not None and not isinstance(backing, Backing):
                become(backing, Backing, self._tracker)
                self._tracker.add_window(backing)
        self.__dict__["slots"] = value


def watch_vm(vm: VM, tracker: Tracker) -> None:
    """Track what the threads of a VM share. It has no slots yet."""
    mmu = vm._mmu
    tracker.schedule.state.of_key["slots", tracker.number, 0] = lambda: tuple(
        tracker.slots[slot] for slot in mmu.__dict__["slots"].slots
    )
    become(mmu.table, Table, tracker)
    become(mmu.shared_table, Table, tracker)
    become(mmu.attributes, Attributes, tracker)
    become(mmu, TrackedMmu, tracker)
