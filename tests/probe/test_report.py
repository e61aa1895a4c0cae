"""The report of inaccfs probe: as text, and as JSON."""

from __future__ import annotations

import json
import os
from itertools import groupby

import pytest

from inaccfs.probe import report, table
from inaccfs.probe.attempts import Row
from inaccfs.probe.table import Result
from inaccfs.probe.targets import GivenFile, Memfd, Target

# Idle threads of earlier tests have no lock that a child needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


class Named(Memfd):
    """A target with a name."""


def results(*found: tuple[str, ...], group: str = "read") -> list[Result]:
    return [
        Result(Row(group, name, lambda _subject: None, False), list(outcomes))
        for name, *outcomes in found
    ]


def test_differences_are_marked() -> None:
    shown = report.table(
        [Named("a"), Named("b")],
        [
            *results(("read", "EINVAL", "EINVAL"), ("pread", "ESPIPE", "ok 8 bytes")),
            *results(("FICLONE", "ok", "not here: why"), group="write"),
        ],
        None,
    )
    assert shown.splitlines() == [
        "           a       b",
        "",
        "read",
        "  read     EINVAL  EINVAL",
        "! pread    ESPIPE  ok 8 bytes",
        "",
        "write",
        "  FICLONE  ok      not here: why",
        "",
        "3 rows, 1 differ, 1 not tried",
    ]


def test_one_target_differs_from_nothing() -> None:
    shown = report.table([Named("a")], results(("read", "EINVAL")), None)
    assert shown.endswith("\n\n1 rows")
    assert "!" not in shown


@pytest.mark.parametrize("width", [200, 100, 80, 60, 47, 30])
def test_a_narrow_terminal_loses_nothing(width: int) -> None:
    rows = results(
        ("fallocate PUNCH_HOLE|KEEP_SIZE unaligned offset", "ok", "EOPNOTSUPP"),
        ("copy_file_range", "not here: a rather long reason", "ok, size 16384"),
    )
    shown = report.table([Named("guest_memfd"), Named("/mnt/guests/here")], rows, width)
    # No column is narrower than 12, so there is a narrowest table.
    assert max(map(len, shown.splitlines())) <= max(width, 42)
    words = shown.split()
    for word in ("unaligned", "offset", "rather", "reason", "16384", "EOPNOTSUPP"):
        assert word in words
    assert sum(line.startswith("! ") for line in shown.splitlines()) == 1


def test_the_report_says_that_one_file_is_used_for_all_rows() -> None:
    shown = report.table([GivenFile("f")], results(("read", "EINVAL")), None)
    assert shown.startswith("f: the same for all rows: ")


def test_names_that_are_no_text_are_shown() -> None:
    """Paths may have any bytes."""
    name = os.fsdecode(b"/mnt/\xff")
    report.table([Named(name)], results(("read", "ok")), None).encode()
    assert json.loads(report.as_json([Named(name)], results(("read", "ok"))))


def test_json_has_the_same() -> None:
    found = json.loads(
        report.as_json(
            [Named("a"), GivenFile("b")],
            results(("read", "ok", "EINVAL"), ("pread", "ok", "not here: why")),
        )
    )
    assert found["target"] == {"name": "a", "file": Target.origin}
    assert found["against"] == {"name": "b", "file": GivenFile.origin}
    assert found["rows"] == [
        {
            "group": "read",
            "name": "read",
            "outcome": "ok",
            "against": "EINVAL",
            "differs": True,
        },
        {
            "group": "read",
            "name": "pread",
            "outcome": "ok",
            "against": "not here: why",
            "differs": False,
        },
    ]
    alone = json.loads(report.as_json([Named("a")], results(("read", "ok"))))
    assert alone["against"] is None
    assert alone["rows"][0]["against"] is None
    assert alone["rows"][0]["differs"] is None


def test_rows_have_names_of_their_own_and_groups_hold_together() -> None:
    names = [row.name for row in table.ROWS]
    assert len(set(names)) == len(names)
    groups = [row.group for row in table.ROWS]
    assert len([group for group, _ in groupby(groups)]) == len(set(groups))
