"""`inaccfs explore`: its output, its statuses, and scenarios in a user's file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inaccfs.explore import carriers
from inaccfs.explore.buggy import KVMS
from inaccfs.explore.load import versions
from inaccfs.explore.scenarios import SCENARIOS
from tests.explore_page import PAGE
from tests.unit.explore_calls import row_of

if TYPE_CHECKING:
    from tests.unit.explore_calls import Run, ScenarioFile

THREADS = """
def actor_a(self):
    import threading, time
    threading.Thread(target=time.sleep, args=[0.5]).start()
"""

UNSTABLE = """
n = 0
def actor_a(self):
    type(self).n += 1
    for _ in range(self.n % 3):
        self.read(self.cpu, 0)
def actor_b(self):
    self.punch(self.fd, 0, 1)
"""


def test_without_a_scenario_all_are_listed(run_explore: Run) -> None:
    status, out, _ = run_explore()
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(SCENARIOS)
    assert all(line.endswith("?") for line in out.splitlines())


def test_a_clean_one_is_status_0(run_explore: Run) -> None:
    status, out, _ = run_explore("mapped", "--semantics", "v10", "--json")
    row = row_of(out)
    assert (status, row["verdict"], row["complete"]) == (0, "clean", True)
    assert (row["kinds"], row["steps"], row["replay"]) == ([], [], None)


def test_what_is_found_is_status_1_with_its_schedule(
    run_explore: Run, tmp_path: Path
) -> None:
    words = ("mapped", "--semantics", "v8")
    status, out, _ = run_explore(*words, "--json")
    row = row_of(out)
    assert (status, row["kinds"]) == (1, ["use-after-free"])
    assert "*** use-after-free" in row["steps"][-1]["text"]
    trace = tmp_path / "trace.json"
    status, out, _ = run_explore(
        *words, "--replay", row["replay"], "--trace", str(trace)
    )
    assert status == 1
    assert row["steps"][-1]["text"] in out
    assert out.splitlines()[-1].startswith("*")
    assert len(json.loads(trace.read_text())["traceEvents"]) > 5


def test_all_versions_are_rows(run_explore: Run) -> None:
    status, out, _ = run_explore("mapped", "--json")
    rows = json.loads(out)["rows"]
    assert status == 1
    assert [row["semantics"] for row in rows] == list(versions())
    assert [row["semantics"] for row in rows if row["kinds"]] == ["v8", "v8-as-posted"]


def test_no_time_is_status_3(run_explore: Run) -> None:
    status, out, _ = run_explore("punch", "--semantics", "v10", "--seconds", "0.02")
    assert status == 3
    assert " no " in out


def test_a_bound_is_told(run_explore: Run) -> None:
    words = ("mapped", "--semantics", "v10", "--preemptions", "0", "--json")
    status, out, _ = run_explore(*words)
    assert (status, row_of(out)["bound"]) == (0, 0)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["pnch"], "unknown scenario 'pnch': did you mean punch?"),
        (["punch", "--kvm", "weak"], "unknown KVM 'weak'"),
        (["punch", "--seconds", "0"], "is not a number of seconds"),
        (["punch", "--preemptions", "-1"], "is not a whole number from 0 to 9999"),
        (["punch", "--seconds", "nan"], "is not a number of seconds"),
        (["punch", "--kvm", ""], "unknown KVM"),
        (["--seconds", "1"], "give a scenario"),
        (["--kvm", "no-retry"], "give a scenario"),
        (["punch", "--semantics", "v10", "--replay", ""], "no replay ID"),
        (["punch", "--semantics", "v10", "--replay", "x", "--all"], "no limit"),
        (["punch", "--semantics", "v10", "--trace", "/"], "name a file"),
        (["punch", "--semantics", "v10", "--trace", "/no/x"], "no such directory"),
        (["punch", "--semantics", "v10", "--semantics", "v1"], "unknown semantics"),
        (["punch", "--all", "--seconds", "1"], "not both"),
        (["punch", "--replay", "x-1"], "need one --semantics"),
        (["/nowhere.py:X"], "no such file"),
    ],
)
def test_wrong_words_are_status_2(
    run_explore: Run, words: list[str], reason: str
) -> None:
    status, _, err = run_explore(*words)
    assert (status, reason in err) == (2, True), err


@pytest.mark.parametrize(
    ("actors", "reason"),
    [
        (
            "def actor_a(self):\n    raise RuntimeError('no')",
            ": RuntimeError: no",
        ),
        ("pass", "there is no method actor_NAME"),
        ("setup = Scenario.setup\ndef actor_a(self): pass", "there is no method setup"),
        ("def actor_a(self):\n    self.x = 1", "an actor sets self.x"),
        ("def actor_a(self):\n    while True: self.read(self.cpu, 0)", "no end after"),
        ("def actor_a(self):\n    raise SystemExit(0)", "SystemExit: 0"),
        ("async def actor_a(self): pass", "must be a plain def"),
        ("actor_a = 5", "actor_a is not a method"),
        ("def actor_a(self, x): pass", "missing 1 required positional argument"),
        ("def actor_a(self): self.punch(self.fd, 1, 1)", "no pages from 1 to 1"),
        ("def actor_a(self): self.punch(0, 0, 1)", "fd 0 is no file of the scenario"),
        ("def actor_a(self): self.truncate(999, 1)", "fd 999 is no file of the"),
        (
            "def actor_a(self): self.memory_failure(self.one, -1, 0)",
            "mine.py line 10: ValueError: fd -1 is no file of the scenario",
        ),
        (
            "def actor_a(self): pass\ndef setup(self): self.slot(self.vm(), 0)",
            "ValueError: fd 0 is no file of the scenario",
        ),
        ("def actor_a(self): self.truncate(self.fd, 513)", "give 0 to 512"),
        ("import os\ndef actor_a(self): self.os.close(self.fd)", "what is not its own"),
        ("def actor_a(self): pass\ndef always(self): 1 / 0", "ZeroDivisionError"),
        ("def actor_a(self): pass\ndef setup(self): 1 / 0", "setup: mine.py line"),
        ("def actor_a(self): pass\ndef always(self): assert 0", "before any actor"),
        (THREADS, "it starts threads"),
        (UNSTABLE, ""),
    ],
)
def test_a_scenario_that_is_wrong_is_status_4(
    run_explore: Run, scenario_file: ScenarioFile, actors: str, reason: str
) -> None:
    status, _, err = run_explore(scenario_file(actors), "--semantics", "v10")
    assert (status, reason in err) == (4, True), err


def test_always_is_asked_after_each_step(
    run_explore: Run, scenario_file: ScenarioFile
) -> None:
    mine = scenario_file(
        "def actor_a(self):\n    self.punch(self.fd, 0, 1)\n"
        "def always(self):\n    assert self.one.in_progress == 0, 'begun'"
    )
    status, out, _ = run_explore(mine, "--semantics", "v10", "--json")
    assert (status, row_of(out)["kinds"]) == (1, ["always"])


def test_the_scenario_of_the_page(run_explore: Run, tmp_path: Path) -> None:
    [text] = re.findall(
        r"```python\n(.*?class LateSlot.*?)```", PAGE.read_text(), re.DOTALL
    )
    path = tmp_path / "late.py"
    path.write_text(text)
    words = ("--semantics", "v10", "--seconds", "0.3", "--json")
    status, out, _ = run_explore(f"{path}:LateSlot", *words)
    assert (status, "unpaired" in row_of(out)["kinds"]) == (1, True)
    assert len(text.splitlines()) <= 25


def test_without_greenlet_the_command_does_the_same(
    run_explore: Run, monkeypatch: pytest.MonkeyPatch, scenario_file: ScenarioFile
) -> None:
    wrong = scenario_file("def actor_a(self):\n    raise SystemExit(0)")
    found = [
        run_explore("mapped", "--semantics", "v8"),
        run_explore(wrong, "--semantics", "v10"),
    ]
    monkeypatch.setattr(carriers, "greenlet", None)
    again = [
        run_explore("mapped", "--semantics", "v8"),
        run_explore(wrong, "--semantics", "v10"),
    ]
    assert [each[0] for each in found] == [1, 4]
    seconds = re.compile(r" +\d+\.\d\d ")
    for one, other in zip(found, again, strict=True):
        assert one[0] == other[0]
        assert seconds.sub("", one[1]) == seconds.sub("", other[1])
        assert one[2] == other[2]


def test_a_list_of_scenarios_for_programs(run_explore: Run) -> None:
    status, out, _ = run_explore("--json")
    found = json.loads(out)
    assert (status, [each["name"] for each in found["kvms"]]) == (0, list(KVMS))
    assert [each["name"] for each in found["scenarios"]] == list(SCENARIOS)


# --- calls in vain --------------------------------------------------------------------


def test_calls_that_are_always_refused_are_told(run_explore: Run) -> None:
    """A verdict that says little, as nothing was converted, says so."""
    words = ("convert-in-place", "--semantics", "v8")
    said = "always refused: convert: conversion of pages [0, 1) to shared: "
    status, out, err = run_explore(*words)
    assert (status, said in out, err) == (0, True, "")
    assert "clean, but calls are always refused" in out
    status, out, err = run_explore(*words, "--json")
    assert (row_of(out)["verdict"], said in err) == ("clean", True)
    status, out, _ = run_explore(
        "convert-in-place", "--semantics", "v8", "--semantics", "v9"
    )
    assert re.search(r"^always refused: .* \(v8, v9\)$", out, re.MULTILINE)
    _, out, err = run_explore("convert-in-place", "--semantics", "in-place-v8")
    assert "refused" not in out + err


SAME_PAGE = """
def setup(self):
    self.fd = self.file(pages=1)
    for name in "one", "two":
        self.slot(self.vm(name), self.fd)
def actor_a(self):
    self.punch(self.fd, 0, 1)
"""


def test_a_version_that_refuses_a_scenario_is_a_row(
    run_explore: Run, scenario_file: ScenarioFile
) -> None:
    mine = scenario_file(SAME_PAGE)
    words = (mine, "--semantics", "bind", "--semantics", "v10")
    status, out, err = run_explore(*words)
    _, bind, v10 = out.splitlines()
    assert bind.endswith("refused: pages 0 to 1 are bound already: unbind them")
    assert (status, v10.split()[-1], err) == (4, "clean", "")
    status, out, err = run_explore(*words, "--json")
    assert (status, row_of(out)["semantics"]) == (4, "v10")
    assert "bind: Mine: setup: mine.py line" in err
    status, _, err = run_explore(mine, "--semantics", "bind")
    assert (status, "pages 0 to 1 are bound already" in err) == (4, True)


@pytest.mark.parametrize(
    "text",
    [
        "def setup(self): open('nofile')\ndef actor_a(self): pass",
        "def actor_a(self): open('nofile')",
        "def actor_a(self):\n    import pathlib\n    pathlib.Path('nofile').stat()",
    ],
    ids=["setup", "actor", "library"],
)
def test_an_error_of_the_scenario_is_no_refusal_of_the_rules(
    run_explore: Run, scenario_file: ScenarioFile, text: str
) -> None:
    """The command ends at the first row, with the file and line."""
    mine = scenario_file(text)
    [line] = [
        number
        for number, text in enumerate(Path(mine[:-5]).read_text().split("\n"), 1)
        if "nofile" in text
    ]
    status, out, err = run_explore(mine, "--semantics", "v8", "--semantics", "v10")
    assert (status, "refused" in out) == (4, False), out
    assert f": mine.py line {line}: FileNotFoundError: " in err
