"""Formats numbers for people, and parses those that they write."""

from __future__ import annotations

import argparse

from inaccfs import words


def size_text(count: int) -> str:
    """A size for people: exact if a few digits suffice."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:g} {unit}" if size.is_integer() else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def seconds_of(text: str) -> float:
    """The number of seconds in an argument; a type for argparse."""
    if (value := words.seconds(text)) is None:
        raise argparse.ArgumentTypeError(
            f"{words.quoted(text)} is not a number of seconds: give one above 0"
        )
    return value
