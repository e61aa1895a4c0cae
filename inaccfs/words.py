"""Numbers and texts of a command line: parse them, and quote them in messages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# int() and float() also take spaces, underscores, a plus and the digits of any script.
_DIGITS: Final = re.compile(r"[0-9]+")
_DECIMAL: Final = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")
_INTEGER: Final = re.compile(r"-?(0[xX][0-9a-fA-F]+|0|[1-9][0-9]*)")
# No number of 64 bits has more. int() itself raises for thousands of digits.
_MOST_DIGITS: Final = 20
_SHOWN: Final = 60


def natural(text: str) -> int | None:
    """*text* as a decimal number; None if it is not one, or too long."""
    if not _DIGITS.fullmatch(text):
        return None
    digits = text.lstrip("0") or "0"
    return int(digits) if len(digits) <= _MOST_DIGITS else None


def integer(text: str) -> int | None:
    """*text* as a decimal or hexadecimal number (0x10), which may be negative.

    None if it is not one, or too long.
    """
    if not _INTEGER.fullmatch(text) or len(text) > _MOST_DIGITS:
        return None
    return int(text, 0)


def seconds(text: str) -> float | None:
    """*text* as a number of seconds above 0; None if it is not one, or too long."""
    if not _DECIMAL.fullmatch(text) or len(text) > _MOST_DIGITS:
        return None
    return float(text) or None


def quoted(text: str) -> str:
    """*text* between quotes, cut if it is long."""
    if len(text) <= _SHOWN:
        return repr(text)
    return f"{text[:_SHOWN]!r}... ({len(text)} characters)"


def nearest(wanted: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of *names* that was probably meant by *wanted*."""
    # Imported here because only mistakes need it.
    import difflib

    found = difflib.get_close_matches(wanted.lower(), list(names), 1, cutoff)
    return found[0] if found else None


def choices(wanted: str, names: Sequence[str], more: str = "") -> str:
    """The *names*, for a message about a *wanted* that is not one of them."""
    near = nearest(wanted, names)
    begin = f"did you mean {near}? There" if near else "there"
    return f"{begin} are {', '.join(names)}{more}"
