"""The values that the explorer lets a read return, as pages are punched."""

from __future__ import annotations

from inaccfs.explore.choosers import Chance
from inaccfs.explore.schedule import Schedule
from inaccfs.explore.sequence import Cells


class CellsOfOne:
    """The values of one page."""

    def __init__(self) -> None:
        self.schedule = Schedule(Chance())
        self.cells = Cells(self.schedule)

    def may_be(self, *values: bytes) -> bool:
        """Whether a read may return these values, and no other."""
        wrong = 0
        for value in (bytes(8), b"old", b"new"):
            before = len(self.schedule.violations)
            allowed = value in self.cells._cell(0, 0).allowed
            if not allowed:
                self.cells.read(0, 0, value)
                assert len(self.schedule.violations) == before + 1
            wrong += allowed != (value in values)
        return not wrong


def test_a_value_stays_if_the_punch_is_refused_that_began_after_it() -> None:
    one = CellsOfOne()
    first = one.cells.punch_begins(0, 0)
    one.cells.write(0, 0, b"new")
    second = one.cells.punch_begins(0, 0)
    one.cells.punch_fails(0, 0, second)
    one.cells.punch_ends(0, 0, first)
    assert one.may_be(bytes(8), b"new")


def test_a_value_is_gone_when_the_first_punch_after_it_has_ended() -> None:
    one = CellsOfOne()
    one.cells.write(0, 0, b"old")
    first = one.cells.punch_begins(0, 0)
    second = one.cells.punch_begins(0, 0)
    one.cells.punch_ends(0, 0, first)
    assert one.may_be(bytes(8))
    one.cells.punch_ends(0, 0, second)
    assert one.may_be(bytes(8))
