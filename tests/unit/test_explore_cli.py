"""`inaccfs explore`: what it prints, its statuses, and scenarios of one's own."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any

import pytest

import inaccfs
from inaccfs.cli import main
from inaccfs.explore import assert_clean
from inaccfs.explore.scenarios import SCENARIOS, Mapped
from inaccfs.semantics import V8, V10, VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

PAGE = Path(inaccfs.__file__).parent.parent / "docs" / "exploring.md"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
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
    assert [row["semantics"] for row in rows] == [each.name for each in VERSIONS]
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
    ("words", "told"),
    [
        (["pnch"], "unknown scenario 'pnch': did you mean punch?"),
        (["punch", "--kvm", "weak"], "unknown KVM 'weak'"),
        (["punch", "--seconds", "0"], "is no number of seconds"),
        (["punch", "--preemptions", "-1"], "is no number of preemptions"),
        (["punch", "--seconds", "nan"], "is no number of seconds"),
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
def test_wrong_words_are_status_2(run: Run, words: list[str], told: str) -> None:
    status, _, err = run(*words)
    assert (status, told in err) == (2, True), err


def test_the_replay_of_another_version_is_refused(run: Run) -> None:
    status, _, err = run("mapped", "--semantics", "v8", "--replay", "00000000-12")
    assert (status, "of another version" in err) == (2, True)


@pytest.mark.parametrize(
    ("actors", "told"),
    [
        ("def actor_a(self):\n    raise RuntimeError('no')", "a: RuntimeError: no"),
        ("pass", "there is no method actor_NAME"),
        ("def actor_a(self):\n    self.x = 1", "an actor sets self.x"),
        ("def actor_a(self):\n    while True: self.read(self.cpu, 0)", "no end after"),
        (THREADS, "it starts threads"),
        (UNSTABLE, ""),
    ],
)
def test_a_scenario_that_is_wrong_is_status_4(
    run: Run, scenario: Callable[[str], str], actors: str, told: str
) -> None:
    status, _, err = run(scenario(actors), "--semantics", "v10")
    assert (status, told in err) == (4, True), err


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
    words = ("--semantics", "v10", "--seconds", "1", "--json")
    status, out, _ = run(f"{path}:LateSlot", *words)
    assert (status, "unpaired" in row_of(out)["kinds"]) == (1, True)
    assert len(text.splitlines()) <= 25


def test_ctrl_c_prints_what_was_found(run: Run) -> None:
    pid = os.fork()
    if not pid:
        time.sleep(1.5)
        os.kill(os.getppid(), signal.SIGINT)
        os._exit(0)
    status, out, _ = run("two-vcpus", "--semantics", "v8", "--json", "--all")
    os.waitpid(pid, 0)
    assert (status, row_of(out)["complete"]) == (130, False)


def test_assert_clean() -> None:
    assert_clean(Mapped, V10())
    with pytest.raises(AssertionError, match=r"(?s)use-after-free.*replay "):
        assert_clean(Mapped, V8())
