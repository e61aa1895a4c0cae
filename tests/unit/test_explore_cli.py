"""`inaccfs explore`: its output, its statuses, and scenarios in a user's file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

import inaccfs
from inaccfs.cli import main, signals
from inaccfs.errors import OptionError
from inaccfs.explore import assert_clean, carriers, search, timeline
from inaccfs.explore.buggy import KVMS
from inaccfs.explore.load import versions
from inaccfs.explore.scenarios import SCENARIOS, Mapped
from inaccfs.explore.timeline import Line, Timeline, as_columns
from inaccfs.explore.trial import ends_in_time
from inaccfs.semantics import V8, V10

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

PAGE = Path(inaccfs.__file__).parent.parent / "docs" / "exploring.md"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    # A signal of the test before is not one of this command.
    monkeypatch.setattr(signals, "_came", float("-inf"))

    def explore(*words: str) -> tuple[int, str, str]:
        try:
            status = main(["explore", *words])
        except SystemExit as exc:
            status = int(exc.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return explore


@pytest.fixture
def scenario(tmp_path: Path) -> Callable[[str], str]:
    """A file with a scenario, whose actors are given."""

    def make(actors: str) -> str:
        text = "from inaccfs.explore import Scenario\n\nclass Mine(Scenario):\n"
        text += "    def setup(self):\n        self.fd = self.file(pages=1)\n"
        text += "        self.one = self.vm()\n        self.slot(self.one, self.fd)\n"
        text += "        self.cpu = self.one.create_vcpu()\n        self.list = []\n"
        path = tmp_path / "mine.py"
        path.write_text(
            text + "".join(f"    {x}\n" for x in dedent(actors).split("\n"))
        )
        return f"{path}:Mine"

    return make


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


def row_of(out: str) -> dict[str, Any]:
    [row] = json.loads(out)["rows"]
    assert isinstance(row, dict)
    return row


def test_without_a_scenario_all_are_listed(run: Run) -> None:
    status, out, _ = run()
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == list(SCENARIOS)
    assert all(line.endswith("?") for line in out.splitlines())


def test_a_clean_one_is_status_0(run: Run) -> None:
    status, out, _ = run("mapped", "--semantics", "v10", "--json")
    row = row_of(out)
    assert (status, row["verdict"], row["complete"]) == (0, "clean", True)
    assert (row["kinds"], row["steps"], row["replay"]) == ([], [], None)


def test_what_is_found_is_status_1_with_its_schedule(run: Run, tmp_path: Path) -> None:
    words = ("mapped", "--semantics", "v8")
    status, out, _ = run(*words, "--json")
    row = row_of(out)
    assert (status, row["kinds"]) == (1, ["use-after-free"])
    assert "*** use-after-free" in row["steps"][-1]["text"]
    trace = tmp_path / "trace.json"
    status, out, _ = run(*words, "--replay", row["replay"], "--trace", str(trace))
    assert status == 1
    assert row["steps"][-1]["text"] in out
    assert out.splitlines()[-1].startswith("*")
    assert len(json.loads(trace.read_text())["traceEvents"]) > 5


def test_all_versions_are_rows(run: Run) -> None:
    status, out, _ = run("mapped", "--json")
    rows = json.loads(out)["rows"]
    assert status == 1
    assert [row["semantics"] for row in rows] == list(versions())
    assert [row["semantics"] for row in rows if row["kinds"]] == ["v8", "v8-as-posted"]


def test_no_time_is_status_3(run: Run) -> None:
    status, out, _ = run("punch", "--semantics", "v10", "--seconds", "0.02")
    assert status == 3
    assert " no " in out


def test_a_bound_is_told(run: Run) -> None:
    words = ("mapped", "--semantics", "v10", "--preemptions", "0", "--json")
    status, out, _ = run(*words)
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
def test_wrong_words_are_status_2(run: Run, words: list[str], reason: str) -> None:
    status, _, err = run(*words)
    assert (status, reason in err) == (2, True), err


def test_the_replay_of_another_version_is_refused(run: Run) -> None:
    status, _, err = run("mapped", "--semantics", "v8", "--replay", "00000000-12")
    assert (status, "of another version" in err) == (2, True)


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
    run: Run, scenario: Callable[[str], str], actors: str, reason: str
) -> None:
    status, _, err = run(scenario(actors), "--semantics", "v10")
    assert (status, reason in err) == (4, True), err


def test_always_is_asked_after_each_step(
    run: Run, scenario: Callable[[str], str]
) -> None:
    mine = scenario(
        "def actor_a(self):\n    self.punch(self.fd, 0, 1)\n"
        "def always(self):\n    assert self.one.in_progress == 0, 'begun'"
    )
    status, out, _ = run(mine, "--semantics", "v10", "--json")
    assert (status, row_of(out)["kinds"]) == (1, ["always"])


def test_the_scenario_of_the_page(run: Run, tmp_path: Path) -> None:
    [text] = re.findall(
        r"```python\n(.*?class LateSlot.*?)```", PAGE.read_text(), re.DOTALL
    )
    path = tmp_path / "late.py"
    path.write_text(text)
    words = ("--semantics", "v10", "--seconds", "0.3", "--json")
    status, out, _ = run(f"{path}:LateSlot", *words)
    assert (status, "unpaired" in row_of(out)["kinds"]) == (1, True)
    assert len(text.splitlines()) <= 25


# --- Ctrl-C ---------------------------------------------------------------------------

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
    run: Run,
    scenario: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    monkeypatch.setattr(signal, "explored", 0, raising=False)
    mine = scenario(INTERRUPTED.format(at=at))
    status, out, _ = run(mine, "--semantics", "v10", "--json", "--all")
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
    run: Run, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Ctrl-C comes in the header, in a row, and in the schedule."""
    out = Interrupting(at)
    monkeypatch.setattr(sys, "stdout", out)
    status, _, _ = run("mapped", "--semantics", "v8", "--seconds", "0.1")
    assert status == 130
    assert re.search(r"^replay \S+\n\Z", out.getvalue(), re.MULTILINE)


def test_ctrl_c_between_rows_ends_the_search(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Interrupting(2)
    monkeypatch.setattr(sys, "stdout", out)
    status, _, _ = run("mapped")
    assert (status, out.getvalue().count("\n")) == (130, 3)


def test_the_second_ctrl_c_ends_it_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, scenario: Callable[[str], str]
) -> None:
    # No two are so near that they are one.
    monkeypatch.setattr(signals, "_SAME_SECONDS", 0.0)
    mine = scenario(
        "def actor_a(self):\n    import signal\n"
        "    for _ in range(2): signal.raise_signal(signal.SIGINT)"
    )
    assert run(mine, "--semantics", "v10")[0] == 130


def test_assert_clean() -> None:
    for rules in (V10(), V10, "v10"):
        assert_clean(Mapped, rules)
    with pytest.raises(AssertionError, match=r"(?s)use-after-free.*replay "):
        assert_clean(Mapped, V8())
    with pytest.raises(AssertionError, match="which are not all"):
        assert_clean(SCENARIOS["two-vcpus"], "v10", seconds=0.01)
    with pytest.raises(OptionError, match="unknown KVM 'x': there are kvm, "):
        assert_clean(Mapped, "v10", kvm="x")


def test_a_test_of_another_project_fails_with_the_schedule(tmp_path: Path) -> None:
    """The sample of the page, under rules that let it pass and rules that do not."""
    [text] = re.findall(
        r"```python\n(from inaccfs[^`]*assert_clean.*?)```", PAGE.read_text(), re.DOTALL
    )
    wrong = text[text.index("def test_") :].replace("guest_memfd", "v8")
    wrong = wrong.replace("def test_", "def test_not_").replace(
        "SharedFile,", "SCENARIOS['mapped'],"
    )
    path = tmp_path / "test_mine.py"
    path.write_text(f"from inaccfs.explore.scenarios import SCENARIOS\n{text}\n{wrong}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert "1 failed, 1 passed" in done.stdout
    assert "use-after-free: vcpu uses page 0" in done.stdout
    assert re.search(r"replay [0-9a-f]{8}-\w+", done.stdout)
    # The output has the schedule, and no traceback of the search.
    assert "pytesting.py" not in done.stdout.partition("short test summary")[0]


def test_without_greenlet_the_command_does_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch, scenario: Callable[[str], str]
) -> None:
    wrong = scenario("def actor_a(self):\n    raise SystemExit(0)")
    found = [run("mapped", "--semantics", "v8"), run(wrong, "--semantics", "v10")]
    monkeypatch.setattr(carriers, "greenlet", None)
    again = [run("mapped", "--semantics", "v8"), run(wrong, "--semantics", "v10")]
    assert [each[0] for each in found] == [1, 4]
    seconds = re.compile(r" +\d+\.\d\d ")
    for one, other in zip(found, again, strict=True):
        assert one[0] == other[0]
        assert seconds.sub("", one[1]) == seconds.sub("", other[1])
        assert one[2] == other[2]


# --- replays, traces and terminals ----------------------------------------------------


def test_a_replay_of_a_file_that_has_changed_is_refused(
    run: Run, scenario: Callable[[str], str], tmp_path: Path
) -> None:
    """A scenario may depend on anything in its file, and so may rules."""
    mine = scenario("def actor_a(self): self.read(self.cpu, 0)")
    rules = tmp_path / "rules.py"
    rules.write_text(
        "from inaccfs.semantics import V8\nCHECKS = 1\nclass Mine(V8):\n"
        "    def check_fallocate(self, mode, offset, length, page_size):\n"
        "        CHECKS\n"
    )
    words = (mine, "--semantics", f"{rules}:Mine", "--kvm", "no-put")
    _, out, _ = run(*words, "--json")
    name = row_of(out)["replay"]
    assert run(*words, "--replay", name)[0] == 1
    for path in (rules, tmp_path / "mine.py"):
        text = path.read_text()
        path.write_text(f"{text}\nMORE = 1\n")
        status, _, err = run(*words, "--replay", name)
        assert (status, "of another version" in err) == (2, True)
        path.write_text(text)
    assert run(*words, "--replay", name)[0] == 1


def test_each_replay_id_shows_the_kind_that_it_is_printed_for(run: Run) -> None:
    words = ("punch", "--semantics", "v10", "--kvm", "no-retry")
    _, out, _ = run(*words)
    found = re.findall(r"^([a-z-]+): .*\n(?:[ *].*\n)*replay (\S+)", out, re.MULTILINE)
    assert len(found) == 3
    for kind, name in found:
        _, out, _ = run(*words, "--replay", name)
        # Two kinds may happen in one step.
        heads = re.findall(r"^([a-z-]+): ", out, re.MULTILINE)
        assert kind in heads
        _, out, _ = run(*words, "--replay", name, "--json")
        assert row_of(out)["kinds"] == sorted(heads)


def test_a_trace_of_nothing_is_not_written(run: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    status, _, err = run("mapped", "--semantics", "v10", "--trace", str(trace))
    assert (status, trace.exists()) == (0, False)
    assert "is not written" in err


def test_the_shortest_schedule_is_replayed_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replays = []

    def replayed(*args: Any) -> Timeline:
        replays.append(args)
        return as_before(*args)

    as_before = timeline.replayed
    monkeypatch.setattr(timeline, "replayed", replayed)
    words = ("mapped", "--semantics", "v8", "--json")
    for more in (), ("--trace", str(tmp_path / "trace.json")):
        replays.clear()
        status, out, _ = run(*words, *more)
        assert (status, len(replays)) == (1, 1)
        assert row_of(out)["steps"]


def test_a_list_of_scenarios_for_programs(run: Run) -> None:
    status, out, _ = run("--json")
    found = json.loads(out)
    assert (status, [each["name"] for each in found["kvms"]]) == (0, list(KVMS))
    assert [each["name"] for each in found["scenarios"]] == list(SCENARIOS)


SHOWN = Timeline(
    [
        Line("vcpu", "takes guest_mode", guilty=False),
        Line("an.actor-with-a-long-name", "answers", guilty=False),
        Line("vcpu", "copies; *** use-after-free: and so on, at length", guilty=True),
    ],
    [],
)


@pytest.mark.parametrize("width", [1, 20, 45, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = as_columns(SHOWN, width).splitlines()
    # A list needs the width of its longest actor's name and 28 columns more.
    assert max(map(len, lines)) <= max(width, 53)
    guilty = [line for line in lines if line.startswith("*")]
    assert "copies;" in guilty[0]
    words = " ".join(" ".join(lines).replace("*", "").split())
    assert {"guest_mode", "answers", "length"} <= set(words.split())


def test_columns_are_those_of_the_actors() -> None:
    head, *lines = as_columns(SHOWN, 80).splitlines()
    at = head.index("an.actor")
    assert lines[1][:at].split() == ["2"]
    assert lines[1][at:] == "answers"


# --- calls in vain, and code without an end -------------------------------------------


def test_calls_that_are_always_refused_are_told(run: Run) -> None:
    """A verdict that says little, as nothing was converted, says so."""
    words = ("convert-in-place", "--semantics", "v8")
    said = "always refused: convert: conversion of pages [0, 1) to shared: "
    status, out, err = run(*words)
    assert (status, said in out, err) == (0, True, "")
    assert "clean, but calls are always refused" in out
    status, out, err = run(*words, "--json")
    assert (row_of(out)["verdict"], said in err) == ("clean", True)
    status, out, _ = run("convert-in-place", "--semantics", "v8", "--semantics", "v9")
    assert re.search(r"^always refused: .* \(v8, v9\)$", out, re.MULTILINE)
    _, out, err = run("convert-in-place", "--semantics", "in-place-v8")
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
    run: Run, scenario: Callable[[str], str]
) -> None:
    mine = scenario(SAME_PAGE)
    words = (mine, "--semantics", "bind", "--semantics", "v10")
    status, out, err = run(*words)
    _, bind, v10 = out.splitlines()
    assert bind.endswith("refused: pages 0 to 1 are bound already: unbind them")
    assert (status, v10.split()[-1], err) == (4, "clean", "")
    status, out, err = run(*words, "--json")
    assert (status, row_of(out)["semantics"]) == (4, "v10")
    assert "bind: Mine: setup: mine.py line" in err
    status, _, err = run(mine, "--semantics", "bind")
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
    run: Run, scenario: Callable[[str], str], text: str
) -> None:
    """The command ends at the first row, with the file and line."""
    mine = scenario(text)
    [line] = [
        number
        for number, text in enumerate(Path(mine[:-5]).read_text().split("\n"), 1)
        if "nofile" in text
    ]
    status, out, err = run(mine, "--semantics", "v8", "--semantics", "v10")
    assert (status, "refused" in out) == (4, False), out
    assert f": mine.py line {line}: FileNotFoundError: " in err


@pytest.mark.parametrize("greenlets", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "def actor_a(self): sum(range(10**12))",
        "sum(range(10**12))\ndef actor_a(self): pass",
        "def actor_a(self):\n    while True: pass",
        "def actor_a(self):\n    import threading\n    threading.Event().wait()",
    ],
    ids=["in C", "in the class", "in Python", "a wait"],
)
def test_code_without_an_end_is_status_4(
    run: Run,
    scenario: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    greenlets: bool,
) -> None:
    monkeypatch.setattr(search, "MOST_SECONDS", 0.5)
    if not greenlets:
        monkeypatch.setattr(carriers, "greenlet", None)
    status, _, err = run(scenario(text), "--semantics", "v10")
    assert (status, "more than 0.5 seconds: it spins" in err) == (4, True), err


@pytest.mark.parametrize("name", [":Mine", ""])
def test_rules_without_an_end_are_named(
    run: Run,
    scenario: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    """A built-in scenario is not to blame; of two files either may be."""
    monkeypatch.setattr(search, "MOST_SECONDS", 0.5)
    rules = tmp_path / "rules.py"
    rules.write_text("while True: pass")
    words = ("--semantics", "v10", "--semantics", f"{rules}{name}")
    status, _, err = run("mapped", *words)
    assert (status, err.startswith(f"inaccfs: {rules}{name}: ")) == (4, True), err
    mine = scenario("def actor_a(self): pass")
    status, _, err = run(mine, *words)
    prefix = f"inaccfs: {mine}, {rules}{name}: "
    assert (status, err.startswith(prefix)) == (4, True), err


# What one process does, as callbacks of a fork stay registered.
INTERRUPTED_FORK = """
import os, signal
from inaccfs.explore.trial import ends_in_time

signal.signal(signal.SIGINT, signal.default_int_handler)
os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
try:
    ends_in_time(signal.pause, 5)
except KeyboardInterrupt:
    print("interrupted")
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("no child")
"""


def test_ctrl_c_in_the_fork_of_a_trial_ends_the_child() -> None:
    """Python prints and drops what is raised in a callback of a fork."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_FORK],
        capture_output=True,
        text=True,
        cwd=PAGE.parent.parent,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("interrupted\nno child\n", "")


# A terminal sends a signal to the child, too, and so does what ends a group.
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_trial_unless_it_is_ignored(name: str, tmp_path: Path) -> None:
    number = signal.Signals[name]
    reached = tmp_path / "reached"

    def call() -> None:
        signal.raise_signal(number)
        reached.touch()

    def handle(*_: object) -> None: ...

    before = signal.getsignal(number)
    try:
        for handler, goes_on in ((signal.SIG_IGN, True), (handle, False)):
            reached.unlink(missing_ok=True)
            signal.signal(number, handler)
            assert ends_in_time(call, 60)
            assert reached.exists() == goes_on
            assert signal.getsignal(number) == handler
    finally:
        signal.signal(number, before)


def test_a_trial_ends_what_only_a_signal_ends() -> None:
    assert ends_in_time(lambda: None, 60)
    assert ends_in_time(lambda: 1 / 0, 60)
    assert not ends_in_time(lambda: sum(range(10**12)), 0.2)


def test_a_trace_does_not_wait_for_who_reads_it(run: Run, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    status, _, err = run("mapped", "--semantics", "v8", "--trace", str(fifo))
    assert (status, "cannot write" in err) == (2, True)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status, _, err = run("mapped", "--semantics", "v8", "--trace", str(fifo))
        assert (status, err) == (1, "")
        assert json.loads(os.read(reader, 1 << 20))["traceEvents"]
    finally:
        os.close(reader)


def test_a_replay_id_that_was_changed_is_told(run: Run) -> None:
    words = ("mapped", "--semantics", "v8")
    _, out, _ = run(*words, "--json")
    name = row_of(out)["replay"]
    status, _, err = run(*words, "--replay", f"{name}Z")
    assert (status, "the replay ID was changed, or the scenario" in err) == (4, True)
