"""Formats numbers for people, and parses those that they write."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from inaccfs import words

if TYPE_CHECKING:
    from collections.abc import Callable


def size_text(count: int) -> str:
    """A size for people: exact if a few digits suffice."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:g} {unit}" if size.is_integer() else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


# The largest numbers of 64 bits, and of a C int.
_MOST: Final = (1 << 64) - 1
_MOST_FD: Final = (1 << 31) - 1


def whole_number(least: int, most: int = _MOST) -> Callable[[str], int]:
    """A type for argparse: whole numbers from *least* to *most*, in decimal digits."""

    def parse(text: str) -> int:
        value = words.natural(text)
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{words.quoted(text)} is not a whole number from {least} to {most}"
            )
        return value

    return parse


fd_of: Final = whole_number(0, _MOST_FD)
"""The fd in an argument; a type for argparse."""


def seconds_of(text: str) -> float:
    """The number of seconds in an argument; a type for argparse."""
    if (value := words.seconds(text)) is None:
        raise argparse.ArgumentTypeError(
            f"{words.quoted(text)} is not a number of seconds: give one above 0"
        )
    return value
