"""The oracle of `inaccfs kvm stress`: it finds stale reads, and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs.kvm import oracle as oracle_
from inaccfs.kvm.oracle import Oracle
from inaccfs.kvm.stress import Plan, Report

if TYPE_CHECKING:
    from inaccfs.kvm.oracle import Cell, Change


@pytest.fixture
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture
def cell(oracle: Oracle) -> Cell:
    return oracle.cells("page", 8)[3]


def write(oracle: Oracle, cell: Cell) -> int:
    """A whole write; returns its stamp."""
    change = oracle.begin_write(cell)
    oracle.end(change, [cell])
    return change.stamp


def clear(oracle: Oracle, *cells: Cell) -> None:
    oracle.end(oracle.begin_clear(cells), cells)


def read(oracle: Oracle, cell: Cell, value: int) -> str | None:
    """The oracle's verdict on a read that no other operation overlaps."""
    return oracle.end_read(oracle.begin_read(), cell, value).wrong


# --- one after the other --------------------------------------------------------------


def test_the_last_written_value_is_read(oracle: Oracle, cell: Cell) -> None:
    assert read(oracle, cell, 0) is None
    first, second = write(oracle, cell), write(oracle, cell)
    assert read(oracle, cell, second) is None
    stale = read(oracle, cell, first)
    assert stale is not None
    assert "which was replaced by stamp 2 before the read began" in stale
    assert stale.startswith("page 3: read stamp 1")


def test_zeros_after_a_write_are_a_lost_write(oracle: Oracle, cell: Cell) -> None:
    write(oracle, cell)
    assert "read zeros, which was replaced" in str(read(oracle, cell, 0))


def test_punched_memory_is_zeros(oracle: Oracle, cell: Cell) -> None:
    stamp = write(oracle, cell)
    clear(oracle, cell)
    assert read(oracle, cell, 0) is None
    assert "which was replaced by zeros" in str(read(oracle, cell, stamp))


def test_the_stamp_of_another_cell_is_reported_with_its_name(
    oracle: Oracle, cell: Cell
) -> None:
    other = oracle.cells("slot 1, page", 2)[1]
    stamp = write(oracle, other)
    write(oracle, cell)
    assert str(read(oracle, cell, stamp)).endswith("which belongs to slot 1, page 1")
    neighbour = oracle.cells("more", 1)[0]
    assert str(read(oracle, neighbour, 1 << 60)).endswith("which belongs to nobody")


def test_a_write_that_was_not_done_is_never_read(oracle: Oracle, cell: Cell) -> None:
    change = oracle.begin_write(cell)
    oracle.undo(change, [cell])
    assert read(oracle, cell, 0) is None
    assert "was never written there" in str(read(oracle, cell, change.stamp))


# --- at the same time -----------------------------------------------------------------


def test_under_a_write_both_are_right(oracle: Oracle, cell: Cell) -> None:
    before = write(oracle, cell)
    change = oracle.begin_write(cell)
    for value in (before, change.stamp):
        assert read(oracle, cell, value) is None
    oracle.end(change, [cell])
    assert read(oracle, cell, change.stamp) is None
    assert read(oracle, cell, before) is not None


def test_a_read_that_began_before_the_change_ended_may_have_missed_it(
    oracle: Oracle, cell: Cell
) -> None:
    before = write(oracle, cell)
    change = oracle.begin_clear([cell])
    begin = oracle.begin_read()
    oracle.end(change, [cell])
    assert oracle.end_read(begin, cell, before) == (None, ())


def test_zeros_of_a_punch_under_way_are_early(oracle: Oracle, cell: Cell) -> None:
    write(oracle, cell)
    change = oracle.begin_clear([cell])
    begin = oracle.begin_read()
    assert oracle.end_read(begin, cell, 0).early == (change,)
    oracle.end(change, [cell])
    begin = oracle.begin_read()
    assert not oracle.end_read(begin, cell, 0).early


def test_a_long_read_keeps_the_values_that_it_may_find(
    oracle: Oracle, cell: Cell
) -> None:
    first = write(oracle, cell)
    begin = oracle.begin_read()
    for _ in range(100):
        write(oracle, cell)
    assert oracle.end_read(begin, cell, first).wrong is None


def test_values_that_no_read_can_find_are_forgotten(oracle: Oracle, cell: Cell) -> None:
    for _ in range(100):
        write(oracle, cell)
        clear(oracle, cell)
        oracle.drop_read(oracle.begin_read())
    assert len(cell.changes) <= oracle_._TIDY_AT


class Register:
    """A correct page: each operation takes effect at one moment."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        self.cell = self.oracle.cells("page", 1)[0]
        self.value = 0

    def operation(self, kind: str) -> Operation:
        return Operation(self, kind)


class Operation:
    """Begins, takes effect and ends, in three steps."""

    def __init__(self, register: Register, kind: str) -> None:
        self._register = register
        self._kind = kind
        self._steps = 0
        self._change: Change | None = None
        self._begin = 0
        self._found = 0

    def step(self) -> bool:
        """Take the next step; return whether it was the last one."""
        self._steps += 1
        (self._start, self._happen, self._finish)[self._steps - 1]()
        return self._steps == 3

    def _start(self) -> None:
        oracle, cell = self._register.oracle, self._register.cell
        match self._kind:
            case "read":
                self._begin = oracle.begin_read()
            case "write":
                self._change = oracle.begin_write(cell)
            case "clear":
                self._change = oracle.begin_clear([cell])

    def _happen(self) -> None:
        if self._change is None:
            self._found = self._register.value
        else:
            self._register.value = self._change.stamp

    def _finish(self) -> None:
        oracle, cell = self._register.oracle, self._register.cell
        if self._change is not None:
            oracle.end(self._change, [cell])
        else:
            assert oracle.end_read(self._begin, cell, self._found).wrong is None


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.sampled_from(["read", "read", "write", "clear"])
        )
    )
)
def test_a_value_is_not_wrong_if_its_write_overlaps_the_read(
    steps: list[tuple[int, str]],
) -> None:
    register = Register()
    under_way: dict[int, Operation] = {}
    for thread, kind in steps:
        operation = under_way.setdefault(thread, register.operation(kind))
        if operation.step():
            del under_way[thread]


# --- the report -----------------------------------------------------------------------


def test_stale_uses_are_no_violation() -> None:
    report = Report(Plan(), "v8", "after", counts=Counter(stale=3))
    assert report.stale_uses == 3
    assert not report.violations
