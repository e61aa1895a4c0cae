"""inaccfs semantics: the table of rules."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest

from inaccfs import cli
from inaccfs.semantics import VERSIONS, checking

if TYPE_CHECKING:
    from pathlib import Path

MINE = """
from inaccfs.semantics import V8


class Mine(V8):
    order = "before"
"""


class Terminal(io.StringIO):
    """A standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["semantics", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def rows(table: str) -> dict[str, list[str]]:
    """By rule, with its mark, the cells of a table."""
    lines = table.splitlines()
    starts = [at for at, char in enumerate(lines[0]) if char != " "]
    # A name begins after a gap.
    starts = [at for at in starts if lines[0][at - 2 : at] == "  "]
    found = {}
    for line in lines[1:]:
        ends = [*starts[1:], None]
        cells = [line[a:b].strip() for a, b in zip(starts, ends, strict=True)]
        found[line[: starts[0]].strip()] = cells
    return found


def test_all_versions_are_shown_with_all_their_rules(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shown(capsys)
    assert out.splitlines()[0].split() == [version.name for version in VERSIONS]
    found = rows(out)
    assert {rule.removeprefix("* ") for rule in found} == {"events", *checking.rules()}
    at = [version.name for version in VERSIONS].index("v7")
    assert found["* read_errno"][at] == "EPERM"
    assert found["* populates"][at] == "yes"
    assert found["* events"][at] == "INVALIDATE, POPULATE"


def test_differences_are_marked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    found = rows(shown(capsys, "v8", f"{tmp_path}/mine.py:Mine"))
    assert [rule for rule in found if rule.startswith("*")] == ["* order"]
    assert found["* order"] == ["after", "before"]


CODE = """
from inaccfs.semantics import V8, refused


class Base(V8):
    def check_fallocate(self, mode, offset, length, page_size):
        raise refused(5)


class Heir(Base):
    pass


class Other(V8):
    def check_fallocate(self, mode, offset, length, page_size):
        raise refused(6)

    def plan(self, *, punches):
        return super().plan(punches=punches)
"""


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["Base", "v8"], {"* check_fallocate": ["its own code", "by the rules"]}),
        (["Base", "Heir"], {"check_fallocate": ["its own code", "its own code"]}),
        (
            ["Base", "Other"],
            {
                "* check_fallocate": ["its own code", "its own code"],
                "* plan": ["by the rules", "its own code"],
            },
        ),
        (["v8", "v8"], {}),
    ],
)
def test_code_is_marked_where_it_differs(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    names: list[str],
    code: dict[str, list[str]],
) -> None:
    """No value shows the difference: the rest of these tables is the same."""
    (tmp_path / "mine.py").write_text(CODE)
    words = [name if name == "v8" else f"{tmp_path}/mine.py:{name}" for name in names]
    found = rows(shown(capsys, *words))
    more = {
        rule: cells for rule, cells in found.items() if rule not in checking.rules()
    }
    del more["events"]
    assert more == code
    parsed = json.loads(shown(capsys, "--json", *words))
    own = [bool(each.get("code")) for each in parsed]
    assert own == ["v8" not in name for name in names]


def test_one_that_is_alone_differs_from_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "*" not in shown(capsys, "v10")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_table_that_is_too_wide_is_cut_into_several(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["semantics"]) == 0
    tables = terminal.getvalue().split("\n\n")
    assert len(tables) > 1
    names = [name for table in tables for name in table.splitlines()[0].split()]
    assert names == [version.name for version in VERSIONS]
    for table in tables:
        lines = table.splitlines()
        alone = len(lines[0].split()) == 1
        assert alone or max(map(len, lines)) <= width


def test_programs_get_json(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = json.loads(shown(capsys, "--json", "guest_memfd-6.8"))
    assert found["name"] == "guest_memfd-6.8"
    assert found["size"] == "fixed"
    assert found["keep_size_required"] is True
    assert found["events"] == ["INVALIDATE_START", "INVALIDATE_END"]
    assert set(found) == {"name", "source", "events", *checking.rules()}


def test_an_unknown_version_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["semantics", "v11"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("inaccfs: unknown semantics 'v11': did you mean v10? There ")
