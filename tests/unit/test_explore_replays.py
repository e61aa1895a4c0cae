"""Replays, traces and timelines of `inaccfs explore`."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from inaccfs.explore import timeline
from inaccfs.explore.timeline import Line, Timeline, as_columns
from tests.unit.explore_calls import row_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.explore_calls import Run, ScenarioFile


def test_the_replay_of_another_version_is_refused(run_explore: Run) -> None:
    status, _, err = run_explore(
        "mapped", "--semantics", "v8", "--replay", "00000000-12"
    )
    assert (status, "of another version" in err) == (2, True)


def test_a_replay_of_a_file_that_has_changed_is_refused(
    run_explore: Run, scenario_file: ScenarioFile, tmp_path: Path
) -> None:
    """A scenario may depend on anything in its file, and so may rules."""
    mine = scenario_file("def actor_a(self): self.read(self.cpu, 0)")
    rules = tmp_path / "rules.py"
    rules.write_text(
        "from inaccfs.semantics import V8\nCHECKS = 1\nclass Mine(V8):\n"
        "    def check_fallocate(self, mode, offset, length, page_size):\n"
        "        CHECKS\n"
    )
    words = (mine, "--semantics", f"{rules}:Mine", "--kvm", "no-put")
    _, out, _ = run_explore(*words, "--json")
    name = row_of(out)["replay"]
    assert run_explore(*words, "--replay", name)[0] == 1
    for path in (rules, tmp_path / "mine.py"):
        text = path.read_text()
        path.write_text(f"{text}\nMORE = 1\n")
        status, _, err = run_explore(*words, "--replay", name)
        assert (status, "of another version" in err) == (2, True)
        path.write_text(text)
    assert run_explore(*words, "--replay", name)[0] == 1


def test_each_replay_id_shows_the_kind_that_it_is_printed_for(run_explore: Run) -> None:
    words = ("punch", "--semantics", "v10", "--kvm", "no-retry")
    _, out, _ = run_explore(*words)
    found = re.findall(r"^([a-z-]+): .*\n(?:[ *].*\n)*replay (\S+)", out, re.MULTILINE)
    assert len(found) == 3
    for kind, name in found:
        _, out, _ = run_explore(*words, "--replay", name)
        # Two kinds may happen in one step.
        heads = re.findall(r"^([a-z-]+): ", out, re.MULTILINE)
        assert kind in heads
        _, out, _ = run_explore(*words, "--replay", name, "--json")
        assert row_of(out)["kinds"] == sorted(heads)


def test_a_replay_id_that_was_changed_is_told(run_explore: Run) -> None:
    words = ("mapped", "--semantics", "v8")
    _, out, _ = run_explore(*words, "--json")
    name = row_of(out)["replay"]
    status, _, err = run_explore(*words, "--replay", f"{name}Z")
    assert (status, "the replay ID was changed, or the scenario" in err) == (4, True)


# --- traces ---------------------------------------------------------------------------


def test_the_shortest_schedule_is_replayed_once(
    run_explore: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
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
        status, out, _ = run_explore(*words, *more)
        assert (status, len(replays)) == (1, 1)
        assert row_of(out)["steps"]


def test_a_trace_of_nothing_is_not_written(run_explore: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    status, _, err = run_explore("mapped", "--semantics", "v10", "--trace", str(trace))
    assert (status, trace.exists()) == (0, False)
    assert "is not written" in err


def test_a_trace_does_not_wait_for_who_reads_it(
    run_explore: Run, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    status, _, err = run_explore("mapped", "--semantics", "v8", "--trace", str(fifo))
    assert (status, "cannot write" in err) == (2, True)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status, _, err = run_explore(
            "mapped", "--semantics", "v8", "--trace", str(fifo)
        )
        assert (status, err) == (1, "")
        assert json.loads(os.read(reader, 1 << 20))["traceEvents"]
    finally:
        os.close(reader)


# --- timelines on terminals -----------------------------------------------------------


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
