"""What reads of pages may return if each call takes effect at one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.explore.names import STAMP, shown

if TYPE_CHECKING:
    from inaccfs.explore.schedule import Schedule

_ZEROS: Final = bytes(STAMP)


class _Cell:
    """One page. A punch takes effect between its change of the file and its return."""

    def __init__(self) -> None:
        # The values that a read may return, each with when it was stored.
        self.allowed: dict[bytes, int] = {_ZEROS: 0}
        # The number of punches in progress, and when the last one changed the file.
        self.punches = 0
        self.begun = 0
        self._clock = 0

    def write(self, value: bytes) -> None:
        self._clock += 1
        self.allowed = {value: self._clock}
        if self.punches:
            self.allowed[_ZEROS] = self._clock

    def read(self, value: bytes) -> None:
        if value == _ZEROS or not self.punches:
            self.allowed = {value: self.allowed[value]}

    def begin(self) -> None:
        self._clock += 1
        self.punches += 1
        self.allowed[_ZEROS] = self.begun = self._clock

    def fail(self) -> None:
        self.punches -= 1

    def end(self) -> None:
        if self.punches:
            self.punches -= 1
            if not self.punches:
                self.allowed = {
                    value: at for value, at in self.allowed.items() if at >= self.begun
                }


class Cells:
    """The pages of all files."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule: Final = schedule
        self._cells: Final[dict[tuple[int, int], _Cell]] = {}

    def _cell(self, file: int, page: int) -> _Cell:
        found = self._cells.get((file, page))
        if found is None:
            found = self._cells[file, page] = _Cell()
        return found

    def write(self, file: int, page: int, value: bytes) -> None:
        """A guest has written *value*."""
        self._cell(file, page).write(value)

    def read(self, file: int, page: int, value: bytes) -> None:
        """A guest has read *value*."""
        cell = self._cell(file, page)
        if value in cell.allowed:
            cell.read(value)
            return
        may = " or ".join(map(shown, cell.allowed))
        current = self._schedule.current
        who = "the setup" if current is None else current.name
        self._schedule.violate(
            "unexplained-read",
            f"{who} reads {shown(value)} from page {page}; by any order of the calls "
            f"it is {may}",
        )

    def punch_begins(self, file: int, page: int) -> None:
        """A punch is about to remove the page."""
        self._cell(file, page).begin()

    def punch_ends(self, file: int, page: int) -> None:
        """The punch has returned."""
        self._cell(file, page).end()

    def punch_fails(self, file: int, page: int) -> None:
        """The call has been refused: the page may have been removed, or not."""
        self._cell(file, page).fail()
