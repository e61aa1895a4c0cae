"""The standard streams: that there are three, and what of a text may reach a terminal.

Imports next to nothing: it is needed before anything else is imported, or opened.
"""

from __future__ import annotations

import os


def fill() -> None:
    """Give those of the fds 0 to 2 that are closed to /dev/null.

    Else a pipe, a socket or a log would get such a number, and be closed, read or
    printed to as a standard stream, here or in a child.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # It is the lowest that is free. Children are to have it, too.
            os.set_inheritable(_open_null(), True)


def _open_null() -> int:
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        # There need not be a /dev; this can be neither read nor written.
        return os.open("/", os.O_RDONLY)


def printable(text: str) -> str:
    """*text* in one line in which no character moves, colours or hides another.

    Names of files may have any byte but two; a terminal obeys some of them. A tab, of
    which tables are made, does nothing that a space does not.

    >>> printable("a\\x1b[2Jb\\n")
    'a\\\\x1b[2Jb\\\\n'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\t" else _escaped(char) for char in text
    )


def printable_lines(text: str) -> str:
    """The same for a text of several lines, which stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        # A byte of a name that is no UTF-8. See os.fsdecode().
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
