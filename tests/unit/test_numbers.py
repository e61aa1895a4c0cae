"""Numbers of a command line: each option takes the same forms, and refuses the same."""

from __future__ import annotations

import pytest

from inaccfs.cli import commandwords, main
from inaccfs.errors import OptionError

# int() or float() would take most of these.
NO_NUMBERS = ["", "x", " 5", "5\n", "+5", "1_000", "1e3", "٣", "inf", "9" * 400]

WHOLE = {
    "explore punch --preemptions": "a whole number from 0 to 9999",
    "kvm stress --vcpus": "a whole number from 1 to 256",
    "kvm stress --punchers": "a whole number from 0 to 256",
    "kvm stress --seed": "a whole number from 0 to 18446744073709551615",
    "kvm run --report-fd": "a whole number from 0 to 2147483647",
    "mount --ready-fd": "a whole number from 0 to 2147483647",
}

SECONDS = ["explore punch --seconds", "kvm stress --seconds"]


def refusal(words: str, number: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says; it must not start."""
    try:
        status = main([*words.split(), number])
    except SystemExit as exc:
        status = int(exc.code or 0)
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert len(line) < 250
    return line


@pytest.mark.parametrize("number", [*NO_NUMBERS, "-1", "0x10", "1.0"])
@pytest.mark.parametrize("words", WHOLE)
def test_a_whole_number(
    words: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f" is not {WHOLE[words]}" in refusal(words, number, capsys)


@pytest.mark.parametrize("number", [*NO_NUMBERS, "0", "0.0", "-1", "nan", "1e-3"])
@pytest.mark.parametrize("words", SECONDS)
def test_a_number_of_seconds(
    words: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert " is not a number of seconds" in refusal(words, number, capsys)


@pytest.mark.parametrize("number", [*NO_NUMBERS, "0b1", "1.0"])
def test_a_number_of_a_typed_command(number: str) -> None:
    words = ["get-pfn", "file=/f", f"offset={number}"]
    with pytest.raises(OptionError, match=r"offset: .* is not a whole number"):
        commandwords.parse(words)


@pytest.mark.parametrize(("number", "value"), [("0", 0), ("16", 16), ("0x1F", 31)])
def test_a_typed_number_may_be_hexadecimal(number: str, value: int) -> None:
    typed = commandwords.parse(["get-pfn", "file=/f", f"offset={number}"])
    assert typed.command.offset == value  # type: ignore[attr-defined]
