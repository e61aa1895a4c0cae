"""What reads of pages may return if each call takes effect at one moment."""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING, Final

from inaccfs.explore.names import STAMP, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from inaccfs.explore.schedule import Schedule

_ZEROS: Final = bytes(STAMP)


class _Cell:
    """One page. A punch takes effect between its change of the file and its return."""

    def __init__(self) -> None:
        # The values that a read may return, each with when it was stored.
        self._allowed: dict[bytes, int] = {_ZEROS: 0}
        # When each punch that is in progress has changed the file, in order; and whose
        # punch it is.
        self._running: Final[dict[int, int]] = {}
        self._clock = 0

    @property
    def allowed(self) -> Collection[bytes]:
        """The values that a read may return."""
        return self._allowed.keys()

    def write(self, value: bytes) -> None:
        self._clock += 1
        self._allowed = {value: self._clock}
        if self._running:
            self._allowed[_ZEROS] = self._clock

    def read(self, value: bytes) -> None:
        if value == _ZEROS or not self._running:
            self._allowed = {value: self._allowed[value]}

    def begin(self, who: int) -> int:
        self._clock += 1
        self._running[self._clock] = who
        self._allowed[_ZEROS] = self._clock
        return self._clock

    def fail(self, begun: int) -> None:
        del self._running[begun]

    def end(self, begun: int) -> None:
        del self._running[begun]
        # What is older has gone, whatever other punches come to.
        self._allowed = {
            value: at for value, at in self._allowed.items() if at >= begun
        }

    def state(self) -> Hashable:
        """What future calls may find: of times, only their order matters."""
        running = list(self._running)
        return tuple(self._running.values()), frozenset(
            (value, bisect(running, at)) for value, at in self._allowed.items()
        )


_UNTOUCHED: Final = _Cell().state()


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

    def punch_begins(self, file: int, page: int) -> int:
        """A punch is about to remove the page. Returns a number for its end."""
        current = self._schedule.current
        return self._cell(file, page).begin(-1 if current is None else current.index)

    def punch_ends(self, file: int, page: int, begun: int) -> None:
        """The punch *begun* has returned."""
        self._cell(file, page).end(begun)

    def punch_fails(self, file: int, page: int, begun: int) -> None:
        """The punch *begun* is refused: the page may have been removed, or not."""
        self._cell(file, page).fail(begun)

    def state(self, file: int, page: int) -> Hashable:
        """The state of a page, for the hash of all states."""
        found = self._cells.get((file, page))
        return _UNTOUCHED if found is None else found.state()
