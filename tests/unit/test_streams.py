"""The standard streams, and what of a text reaches a terminal."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from inaccfs import streams
from inaccfs.cli import output
from inaccfs.words import natural, quoted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/mnt/a b", "/mnt/a b"),
        ("ünïcödé ☃", "ünïcödé ☃"),
        ("a\tb", "a\tb"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb\r", "a\\nb\\r"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("\u202eevil", "\\u202eevil"),
        ("\udcff\udc9b", "\\xff\\x9b"),
    ],
)
def test_a_terminal_obeys_nothing(text: str, shown: str) -> None:
    assert streams.printable(text) == shown
    assert streams.printable_lines(f"{text}\nb") == "\n".join(
        [*(streams.printable(line) for line in text.split("\n")), "b"]
    )


@pytest.mark.parametrize("text", ["\x1b", "\x9b2J", "a\u202eb", "\U000e0001", "\n"])
def test_json_stays_json(capsys: pytest.CaptureFixture[str], text: str) -> None:
    output.say_json(json.dumps([text], ensure_ascii=False).encode())
    out = capsys.readouterr().out
    assert json.loads(out) == [text]
    assert out.removesuffix("\n").isprintable()


CLOSED = """
import os, sys
for fd in {closed}:
    os.close(fd)
from inaccfs import streams
streams.fill()
null = os.stat(os.devnull).st_rdev
assert [fd for fd in range(3) if os.fstat(fd).st_rdev == null] == {closed}
assert all(os.get_inheritable(fd) for fd in range(3))
ready, _ = os.pipe()
assert ready > 2
"""


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1], [1, 2], [0, 1, 2], []])
def test_closed_streams_are_opened(closed: list[int]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CLOSED.format(closed=closed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        _, err = process.communicate()
    assert (process.returncode, err) == (0, b"")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("007", 7),
        ("18446744073709551615", (1 << 64) - 1),
        ("0" * 5000 + "5", 5),
        ("9" * 5000, None),
        ("-1", None),
        ("1_0", None),
        (" 1", None),
        ("٣", None),
        ("²", None),
        ("", None),
    ],
)
def test_a_number_is_of_so_many_digits(text: str, number: int | None) -> None:
    assert natural(text) == number


def test_a_quoted_word_is_shortened() -> None:
    assert quoted("short") == "'short'"
    assert len(quoted("9" * 5000)) < 100
