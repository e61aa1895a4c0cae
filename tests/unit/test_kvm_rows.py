"""The code that runs the rows, on fake KVMs: differences, absent rows, dying rows."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Final

import pytest

from inaccfs.errors import InaccfsError
from inaccfs.kvm.probe import recorded, report, table
from inaccfs.kvm.probe.asking import ABSENT, Row, Rows
from inaccfs.kvm.probe.protocol import AbsentError
from inaccfs.kvm.probe.rows import ROWS
from inaccfs.kvm.probe.table import Answer, Asked, Result, compare
from tests.unit.kvm_probe_fakes import FakeKvm, FakeOpponent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from inaccfs.kvm.probe.machine import Machine

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

SAMPLE: Final = Rows("sample")


@SAMPLE.row("Create a slot, and the same again.")
def twice(machine: Machine) -> Iterator[object]:
    fd, half = machine.memory()
    yield "ok"
    yield machine.region(fd=fd, at=half.address)


@SAMPLE.row("What not all have.", private=True)
def lacking(machine: Machine) -> Iterator[object]:
    yield machine.to_private()


@SAMPLE.row("It kills itself.", low=False)
def deadly(_machine: Machine) -> Iterator[object]:
    yield "first"
    os.kill(os.getpid(), signal.SIGKILL)


@SAMPLE.row("It never ends.", low=False)
def endless(_machine: Machine) -> Iterator[object]:
    yield "first"
    time.sleep(1000)


@SAMPLE.row("What it needs is refused.", low=False)
def unprepared(machine: Machine) -> Iterator[object]:
    machine.plain()
    machine.plain()
    yield "not seen"


@SAMPLE.row("A file of no pages.", low=False)
def no_file(machine: Machine) -> Iterator[object]:
    machine.create(0)
    yield "not seen"


SAMPLES: Final = {row.name.removeprefix("sample-"): row for row in SAMPLE.rows}


def ask(name: str, kvm: FakeKvm | None = None, limit: float = 30) -> Answer:
    (answer,) = Asked(FakeOpponent(kvm), limit).answers([SAMPLES[name]])
    return answer


def test_steps_are_one_outcome() -> None:
    assert ask("twice") == Answer("ok; EINVAL")


def test_what_is_lacking_is_absent() -> None:
    kvm = FakeKvm(private=False)
    assert ask("lacking", kvm) == Answer(ABSENT, "KVM_SET_MEMORY_ATTRIBUTES")
    assert ask("lacking") == Answer("ok")


def test_what_kills_or_hangs_is_an_outcome() -> None:
    assert ask("deadly") == Answer("first; SIGKILL")
    assert ask("endless", limit=0.2) == Answer("first; hangs")


def test_what_stops_a_row_is_its_outcome() -> None:
    assert ask("unprepared") == Answer("cannot begin: EINVAL")
    assert ask("no-file") == Answer("stopped by EINVAL")


def test_a_kvm_that_has_gone_stops_all_rows() -> None:
    with pytest.raises(InaccfsError, match="the daemon has gone"):
        Asked(FakeOpponent(trouble="the daemon has gone")).answers(ROWS)


# --- comparing ------------------------------------------------------------------------


class Given:
    """A side of the comparison that has these outcomes."""

    def __init__(self, *outcomes: str) -> None:
        self.name = "given"
        self.origin = ""
        self._answers = [Answer(outcome) for outcome in outcomes]

    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        assert len(rows) == len(self._answers)
        return self._answers


def result(*outcomes: str, allowed: Sequence[str] = ()) -> Result:
    row = SAMPLES["twice"]._replace(allowed=frozenset(allowed))
    (found,) = compare([Given(outcome) for outcome in outcomes], [row])
    return found


def test_a_difference_is_one() -> None:
    assert result("ok", "EINVAL").differs
    assert not result("ok", "ok").differs
    assert not result("ok").differs


def test_what_the_opponent_lacks_does_not_count() -> None:
    assert not result("ok", ABSENT).differs
    assert result(ABSENT, "ok").differs


def test_a_race_differs_by_an_outcome_that_may_not_be() -> None:
    allowed = ("zeros", "exit")
    assert not result("zeros", "exit", allowed=allowed).differs
    assert result("zeros", "ones", allowed=allowed).differs
    assert result("ones", "ones", allowed=allowed).differs
    assert not result("zeros", ABSENT, allowed=allowed).differs
    assert not result("ones", allowed=allowed).differs


@pytest.mark.parametrize("name", ["region-offset-1", "slot-file-one-page"])
def test_a_kvm_with_an_error_differs_in_that_row_alone(name: str) -> None:
    """This holds for the rows that the fake can answer."""
    rows = [row for row in ROWS if row.group in ("region", "slot")]
    kvms = [FakeKvm(), FakeKvm(error=name)]
    found = compare([Asked(FakeOpponent(kvm)) for kvm in kvms], rows)
    assert [each.row.name for each in found if each.differs] == [name]


class Named(Given):
    """A side with a name, and perhaps a kernel."""

    def __init__(self, name: str, origin: str = "") -> None:
        super().__init__()
        self.name = name
        self.origin = origin


# --- shown ----------------------------------------------------------------------------


def test_a_row_that_differs_is_marked_and_explained() -> None:
    shown = report.table(
        [Named("a"), Named("b", "Linux 9.9")],
        [result("ok", "EINVAL"), result("ok", "ok")],
        None,
    )
    assert shown.splitlines() == [
        "b: Linux 9.9",
        "                a   b",
        "",
        "sample",
        "! sample-twice  ok  EINVAL",
        "      Create a slot, and the same again.",
        "  sample-twice  ok  ok",
        "",
        "2 rows, 1 differ",
    ]


def test_what_is_absent_is_counted_by_what_lacks() -> None:
    row = SAMPLES["twice"]
    absent = Result(row, [Answer("ok"), Answer(ABSENT, "a capability")])
    shown = report.table([Named("a"), Named("b")], [absent, absent], None).splitlines()
    assert shown[-2:] == [
        "2 rows, 0 differ, 2 absent",
        "  absent, for want of a capability: 2",
    ]


def test_json_has_names_outcomes_and_differences() -> None:
    found = json.loads(
        report.as_json(
            {"semantics": "v8"},
            [Named("a"), Named("b", "Linux 9.9")],
            [result("ok", "EINVAL")],
        )
    )
    assert found["semantics"] == "v8"
    assert found["kvms"] == ["a", "b"]
    assert found["origins"] == ["", "Linux 9.9"]
    assert found["rows"] == [
        {
            "group": "sample",
            "name": "sample-twice",
            "what": "Create a slot, and the same again.",
            "outcomes": ["ok", "EINVAL"],
            "differs": True,
        }
    ]
    race = json.loads(
        report.as_json({}, [Named("a")], [result("x", allowed=["x", "y"])])
    )
    assert race["rows"][0]["allowed"] == ["x", "y"]
    assert race["rows"][0]["differs"] is False


# --- all rows -------------------------------------------------------------------------


def test_there_are_many_rows_with_names_of_their_own() -> None:
    assert len(ROWS) >= 150
    assert len({row.name for row in ROWS}) == len(ROWS)
    groups = list(dict.fromkeys(row.group for row in ROWS))
    assert [row.group for row in ROWS] == sorted(
        (row.group for row in ROWS), key=groups.index
    )


def test_a_row_says_in_one_sentence_what_is_done() -> None:
    for row in ROWS:
        assert row.sentence.endswith("."), row
        assert ". " not in row.sentence, row
        assert "\n" not in row.sentence, row


def test_all_rows_are_recorded_and_races_as_they_may_be() -> None:
    found = recorded.read()
    assert found.source.startswith("linux-source-6.12 ")
    assert found.source.split(" ")[1].startswith(f"{found.kernel}-")
    answered = dict(zip(ROWS, found.answers(ROWS), strict=True))
    assert [
        row.name for row, each in answered.items() if each.why.startswith("rec")
    ] == []
    assert [
        (row.name, each.outcome)
        for row, each in answered.items()
        if row.allowed and each.outcome not in {*row.allowed, ABSENT}
    ] == []


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [SAMPLES["twice"], SAMPLES["lacking"]]
    answers = [Answer("ok; EINVAL"), Answer(ABSENT, "a capability")]
    about = {"kernel": "9.9", "source": "linux-source-9.9 9.9.1-1"}
    recorded.write(tmp_path / "x", rows, answers, about)
    again = recorded.Recorded(json.loads((tmp_path / "x").read_text()))
    assert again.answers(rows) == answers
    (missing,) = again.answers([SAMPLES["endless"]])
    assert missing.outcome == ABSENT


def test_the_limit_leaves_a_slow_machine_its_time() -> None:
    assert table.LIMIT >= 30


def test_absent_is_an_error_of_rows_and_not_of_the_system() -> None:
    assert not issubclass(AbsentError, OSError)
