"""The standard streams, and files to write: open them, and escape text for a terminal.

This imports almost nothing, because it must run before other imports and before any
open().
"""

from __future__ import annotations

import os


def fill() -> None:
    """Open /dev/null for each of the fds 0 to 2 that is closed.

    Otherwise a pipe, a socket or a log could get such a number, and this process or a
    child would take it for a standard stream.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # open(2) returns the lowest free number, *fd*. Children inherit it.
            os.set_inheritable(_open_null(), True)


def _open_null() -> int:
    try:
        return os.open(os.devnull, os.O_RDWR)
    except OSError:
        # A system may lack /dev. This fd can be neither read nor written.
        return os.open("/", os.O_RDONLY)


def create(path: str, mode: int = 0o666) -> int:
    """Open a file to write it from its start; returns the fd.

    A FIFO that nobody reads is ENXIO. Otherwise open(2) would wait; and Ctrl-C would
    not end the wait, if its handler raises nothing.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    fd = os.open(path, flags | os.O_NONBLOCK, mode)
    os.set_blocking(fd, True)
    return fd


def printable(text: str) -> str:
    """*text* in one line in which no character moves, colours or hides another.

    Names of files may have any byte but "/" and NUL, and a terminal obeys some of them.
    A tab stays, for tables: to a terminal it is as harmless as a space.

    >>> printable("a\\x1b[2Jb\\n")
    'a\\\\x1b[2Jb\\\\n'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\t" else _escaped(char) for char in text
    )


def printable_lines(text: str) -> str:
    """Each line of *text* made `printable`; the newlines stay."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        # A byte of a name that is not UTF-8. See os.fsdecode().
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
