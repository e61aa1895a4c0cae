"""The table of exit statuses: each command has a row, and ends as the row says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from inaccfs.cli import dispatch, explore, main, statuses
from tests.unit.test_rooms import PAGE

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (PAGE.parent / "exit-statuses.md").read_text()

# By command: arguments with which it fails.
CANNOT: dict[str, list[str]] = {
    "mount": ["{}/none"],
    "umount": ["{}"],
    "status": ["{}"],
    "top": ["{}"],
    "map": ["{}"],
    "trace": ["{}"],
    "metrics": ["{}"],
    "qmp": ["{}", "query-stats"],
    "kvm": ["stress", "{}"],
    "experiment": ["bindings", "--plot", "{}/none/x.svg"],
    "compare": ["{}/none.py", "--semantics", "v8", "--semantics", "v10"],
    "report": ["{}"],
}


def rows() -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, status in re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", TEXT, re.MULTILINE):
        found.setdefault(name, set()).add(int(status))
    return found


def status_of(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as exc:
        return int(exc.code or 0)


def test_each_command_has_a_row_in_the_order_of_the_help() -> None:
    assert list(rows()) == list(dispatch._COMMANDS)


def test_the_common_ones_are_those_of_the_code() -> None:
    common = re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)
    assert common == ["0", "1", str(statuses.USAGE), str(statuses.INTERRUPTED)]
    assert {explore.NOT_COMPLETE, explore.WRONG} < rows()["explore"]


@pytest.mark.parametrize("command", dispatch._COMMANDS)
def test_wrong_words_are_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(command, "--no-such-option") == statuses.USAGE
    assert status_of(command, "-h") == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", CANNOT)
def test_what_cannot_be_done_is_1_and_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(tmp_path) for word in CANNOT[command]]
    assert status_of(command, *words) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_probe_that_cannot_be_done_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("probe", str(tmp_path / "none")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_rules_that_are_wrong_are_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("semantics", "v99") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "required: COMMAND (see inaccfs -h)"),
        ("mont x", "no command 'mont': did you mean mount? inaccfs -h lists them all"),
        ("frobnicate", "no command 'frobnicate': inaccfs -h lists them all"),
        ("status --jsn", "unknown option '--jsn': see inaccfs status -h"),
        ("mount a b", "unknown operand 'b': see inaccfs mount -h"),
        ("-v mount a", "options go after the command: inaccfs mount -v ..."),
        ("--json status", "options go after the command: inaccfs status --json ..."),
        ("-o x kvm run", "options go after the command: inaccfs kvm -o x ..."),
        ("-v", "inaccfs -h"),
        ("kvm probe x", "unknown operand 'x': see inaccfs kvm probe -h"),
        ("kvm run", "required: SCRIPT.py (see inaccfs kvm run -h)"),
        ("compare", "required: SCRIPT.py (see inaccfs compare -h)"),
        ("qmp", "required: MOUNTPOINT (see inaccfs qmp -h)"),
        ("experiment nothing", "unknown experiment 'nothing': there are size, order"),
        ("explore Mapped", "unknown scenario 'Mapped': did you mean mapped? There are"),
    ],
)
def test_wrong_words_say_what_is_right(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(*words.split()) == statuses.USAGE
    assert said in capsys.readouterr().err
