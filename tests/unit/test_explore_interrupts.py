"""Ctrl-C ends `inaccfs explore`, which prints what it has found."""

from __future__ import annotations

import re
import signal
import sys
from io import StringIO
from typing import TYPE_CHECKING

import pytest

from inaccfs.cli import signals
from tests.unit.explore_calls import row_of

if TYPE_CHECKING:
    from tests.unit.explore_calls import Run, ScenarioFile


# Each schedule has an error, and there are too many schedules to try. The counter is
# where the explorer does not look, because the explorer refuses state that actors
# change.
INTERRUPTED = """
def actor_a(self):
    import signal
    signal.explored += 1
    if signal.explored == {at}:
        signal.raise_signal(signal.SIGINT)
    for page in range(20):
        self.read(self.cpu, 0)
def actor_b(self):
    for page in range(20):
        self.punch(self.fd, 0, 1)
def always(self):
    assert self.one.in_progress == 0
"""


# In the first schedule, in a random one, and in one of the systematic search.
@pytest.mark.parametrize("at", [1, 7, 50])
def test_ctrl_c_in_a_search_prints_what_was_found(
    run_explore: Run,
    scenario_file: ScenarioFile,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    monkeypatch.setattr(signal, "explored", 0, raising=False)
    mine = scenario_file(INTERRUPTED.format(at=at))
    status, out, _ = run_explore(mine, "--semantics", "v10", "--json", "--all")
    row = row_of(out)
    assert (status, row["complete"]) == (130, False)
    assert at <= row["schedules"] + row["pruned"] <= at + 2
    assert row["steps"]


class Interrupting(StringIO):
    """An output on which SIGINT comes as line *at* is printed."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def write(self, text: str) -> int:
        if self.getvalue().count("\n") == self._at:
            self._at = -1
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_ctrl_c_while_it_prints_cuts_nothing_off(
    run_explore: Run, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Ctrl-C comes in the header, in a row, and in the schedule."""
    out = Interrupting(at)
    monkeypatch.setattr(sys, "stdout", out)
    status, _, _ = run_explore("mapped", "--semantics", "v8", "--seconds", "0.1")
    assert status == 130
    assert re.search(r"^replay \S+\n\Z", out.getvalue(), re.MULTILINE)


def test_ctrl_c_between_rows_ends_the_search(
    run_explore: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Interrupting(2)
    monkeypatch.setattr(sys, "stdout", out)
    status, _, _ = run_explore("mapped")
    assert (status, out.getvalue().count("\n")) == (130, 3)


def test_the_second_ctrl_c_ends_it_at_once(
    run_explore: Run, monkeypatch: pytest.MonkeyPatch, scenario_file: ScenarioFile
) -> None:
    # No two are so near that they are one.
    monkeypatch.setattr(signals, "_SAME_SECONDS", 0.0)
    mine = scenario_file(
        "def actor_a(self):\n    import signal\n"
        "    for _ in range(2): signal.raise_signal(signal.SIGINT)"
    )
    assert run_explore(mine, "--semantics", "v10")[0] == 130
