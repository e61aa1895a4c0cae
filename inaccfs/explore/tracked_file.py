"""What steps touch of a file: its notifiers, its size, and whether it is frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inaccfs.explore import keys
from inaccfs.explore.tracked_vm import Tracker, become
from inaccfs.shim.file import InaccessibleFile
from inaccfs.shim.notifiers import Notifiers
from inaccfs.shim.pages import Pages

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from inaccfs.semantics.rules import Check
    from inaccfs.shim.memory import Memory
    from inaccfs.shim.notifiers import Notifier


class List(Notifiers):
    """The list of notifiers of a file, and who has not answered."""

    _tracker: Tracker

    def __len__(self) -> int:
        self._tracker.read("list")
        return super().__len__()

    def __iter__(self) -> Iterator[Notifier]:
        self._tracker.read("list")
        return super().__iter__()

    @property
    def running(self) -> bool:
        """See `Notifiers.running`. By some rules get-pfn waits until it is not."""
        self._tracker.read("locked")
        return bool(self.__dict__["running"])

    @running.setter
    def running(self, value: bool) -> None:
        self._tracker.write("locked")
        self.__dict__["running"] = value

    def _concerned(self, start: int, end: int) -> list[Notifier]:
        self._tracker.read("list")
        return super()._concerned(start, end)

    def cover(self, start: int, end: int) -> bool:
        """See `Notifiers.cover`."""
        self._tracker.read("list")
        return super().cover(start, end)

    def first(self, start: int, end: int) -> int | None:
        """See `Notifiers.first`."""
        self._tracker.read("list")
        return super().first(start, end)

    def _add(self, notifier: Notifier) -> None:
        tracker = self._tracker
        notifier.__dict__["number"] = tracker.schedule.number("notifier")
        tracker.notifiers.append(notifier)
        if tracker.schedule.tracks:
            tracker.schedule.state.meet_early(("list", tracker.number, 0))

    async def register(self, notifier: Notifier) -> None:
        """See `Notifiers.register`."""
        self._add(notifier)
        await super().register(notifier)
        self._tracker.write("list")

    async def bind(
        self, notifier: Notifier, start: int, end: int, *, exclusive: bool
    ) -> None:
        """See `Notifiers.bind`."""
        self._add(notifier)
        try:
            await super().bind(notifier, start, end, exclusive=exclusive)
        except OSError:
            # Another notifier has some of the pages.
            self._tracker.read("list")
            raise
        self._tracker.write("list")

    def drop(self, notifier: Notifier) -> None:
        """See `Notifiers.drop`."""
        self._tracker.write("list")
        self._tracker.write("answers")
        super().drop(notifier)

    def silence(self, notifier: Notifier) -> None:
        """See `Notifiers.silence`."""
        self._tracker.write("list")
        self._tracker.write("answers")
        super().silence(notifier)

    def waiting(self, notifier: Notifier) -> int | None:
        """See `Notifiers.waiting`."""
        self._tracker.write("answers")
        return super().waiting(notifier)

    def answer(self, notifier: Notifier, sequence: int) -> None:
        """See `Notifiers.answer`."""
        self._tracker.write("answers")
        super().answer(notifier, sequence)

    def _expect(self, targets: list[Notifier], then: Callable[[], None]) -> int:
        self._tracker.write("answers")
        return super()._expect(targets, then)


class File(InaccessibleFile):
    """A file that may be frozen, or get another size, while a call waits."""

    __slots__ = ()

    @property
    def _tracker(self) -> Tracker:
        notifiers: Any = self.notifiers
        found: Tracker = notifiers._tracker
        return found

    @property
    def size(self) -> int:
        """See `FileState.size`."""
        self._tracker.read("size")
        return super().size

    def ends_before(self, end: int) -> bool:
        """See `InaccessibleFile.ends_before`. It may have looked the size up before."""
        self._tracker.read("size")
        return super().ends_before(end)

    def first_present(self, start: int, end: int) -> int | None:
        """See `FileState.first_present`."""
        tracker = self._tracker
        for page in range(start, end):
            tracker.schedule.touch(keys.page(tracker.number, page), False)
        return super().first_present(start, end)

    def check_frozen(self) -> None:
        """See `FileState.check_frozen`."""
        tracker = self._tracker
        tracker.schedule.touch(keys.frozen(tracker.number), False)
        super().check_frozen()

    def set_frozen(self, holder: Hashable | None, check: Check) -> None:
        """See `FileState.set_frozen`."""
        tracker = self._tracker
        tracker.schedule.touch(keys.frozen(tracker.number))
        super().set_frozen(holder, check)


class FilePages(Pages):
    """Pages with the references that a conversion looks at, or that refuse a punch."""

    __slots__ = ()

    def memory_of(self, start: int, end: int) -> Memory:
        notifiers: Any = self._notifiers
        notifiers._tracker.read("size")
        return super().memory_of(start, end)

    def first_referenced(
        self, start: int, end: int, *, pins_only: bool = False
    ) -> int | None:
        """See `Pages.first_referenced`."""
        self._look(start, end)
        return super().first_referenced(start, end, pins_only=pins_only)

    async def find_reference(
        self, start: int, end: int, *, pins_only: bool = False
    ) -> int | None:
        """See `Pages.find_reference`."""
        self._look(start, end)
        return await super().find_reference(start, end, pins_only=pins_only)

    def _look(self, start: int, end: int) -> None:
        notifiers: Any = self._notifiers
        tracker: Tracker = notifiers._tracker
        if not tracker.schedule.tracks:
            return
        for page in range(start, end):
            tracker.schedule.touch(keys.page(tracker.number, page), False)
        for extent in self.extents_in(start, end):
            for pfn in range(extent.pfn, extent.pfn + extent.count):
                tracker.schedule.touch(keys.references(pfn), False)


def watch_file(file: InaccessibleFile, tracker: Tracker) -> None:
    """Track a file: its notifiers, its references, its size, and who freezes it."""
    become(file.notifiers, List, tracker)
    file.__class__ = File
    file.pages.__class__ = FilePages
