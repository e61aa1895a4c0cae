"""Numbers and texts of a command line: read, and repeated in what is said of them."""

from __future__ import annotations

import re
from typing import Final

_DIGITS: Final = re.compile(r"[0-9]+")
# 64 bits have no more; Python itself refuses thousands.
_MOST_DIGITS: Final = 20
_SHOWN: Final = 60


def natural(text: str) -> int | None:
    """The number that *text* is in decimal digits; None if it is none, or too long."""
    if not _DIGITS.fullmatch(text):
        return None
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= _MOST_DIGITS else None


def quoted(text: str) -> str:
    """*text* between quotes, and not longer than somebody wants to read."""
    if len(text) <= _SHOWN:
        return repr(text)
    return f"{text[:_SHOWN]!r}... ({len(text)} characters)"
