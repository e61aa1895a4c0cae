"""Code without an end is refused, after a trial in a child process."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from inaccfs.explore import carriers, search
from inaccfs.explore.trial import ends_in_time
from tests.explore_page import PAGE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.explore_calls import Run, ScenarioFile


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
    run_explore: Run,
    scenario_file: ScenarioFile,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    greenlets: bool,
) -> None:
    monkeypatch.setattr(search, "MOST_SECONDS", 0.5)
    if not greenlets:
        monkeypatch.setattr(carriers, "greenlet", None)
    status, _, err = run_explore(scenario_file(text), "--semantics", "v10")
    assert (status, "more than 0.5 seconds: it spins" in err) == (4, True), err


@pytest.mark.parametrize("name", [":Mine", ""])
def test_rules_without_an_end_are_named(
    run_explore: Run,
    scenario_file: ScenarioFile,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    """A built-in scenario is not to blame; of two files either may be."""
    monkeypatch.setattr(search, "MOST_SECONDS", 0.5)
    rules = tmp_path / "rules.py"
    rules.write_text("while True: pass")
    words = ("--semantics", "v10", "--semantics", f"{rules}{name}")
    status, _, err = run_explore("mapped", *words)
    assert (status, err.startswith(f"inaccfs: {rules}{name}: ")) == (4, True), err
    mine = scenario_file("def actor_a(self): pass")
    status, _, err = run_explore(mine, *words)
    prefix = f"inaccfs: {mine}, {rules}{name}: "
    assert (status, err.startswith(prefix)) == (4, True), err


# --- the trial ------------------------------------------------------------------------


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
