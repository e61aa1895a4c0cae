"""The daemon's log: its format, its level, and its file."""

from __future__ import annotations

import faulthandler
import logging
import os
import stat
from contextlib import suppress
from typing import Final

from inaccfs.errors import MountError
from inaccfs.streams import printable, printable_lines

_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# By the number of -v: problems; also events; also each refusal.
_LEVELS: Final = (logging.WARNING, logging.INFO, logging.DEBUG)

_FLAGS: Final = (
    os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    # Another user may have put a link or a FIFO there.
    | os.O_NOFOLLOW | os.O_NONBLOCK
)  # fmt: skip


def start(verbose: int) -> None:
    """Log to the standard error from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(_FORMAT))
    logging.getLogger().addHandler(handler)
    level = _LEVELS[min(verbose, len(_LEVELS) - 1)]
    logging.getLogger("inaccfs").setLevel(level)
    # On a full disk a line is lost, without a traceback.
    logging.raiseExceptions = False
    # Let a crash of the interpreter leave a traceback, too.
    faulthandler.enable()


class _Formatter(logging.Formatter):
    """Keeps each message on one line, and escapes control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


class LogFile:
    """The file for standard output and error of a daemon, which has no terminal."""

    def __init__(self, path: str) -> None:
        """Raises `MountError` if *path* cannot be written, or is unsuitable."""
        self._path = path
        try:
            # A log that exists already, or is not a file, belongs to the user.
            self._made = not os.path.lexists(path)
            self._fd = os.open(path, _FLAGS, 0o600)
        except OSError as exc:
            raise MountError(f"cannot write the log {path}: {_why(path, exc)}") from exc
        found = os.fstat(self._fd)
        kind = found.st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISCHR(kind)):
            os.close(self._fd)
            raise MountError(
                f"cannot write the log {path}: it is neither a regular file nor a "
                "character device; name another with --log"
            )
        os.set_blocking(self._fd, True)
        if self._made and found.st_uid == os.geteuid():
            # Whatever the umask: we must be able to append to it again.
            os.fchmod(self._fd, 0o600)
        # Whether standard output and error go to the file.
        self.is_taken = False

    def take_output(self) -> None:
        """Send standard output and error here from now on."""
        os.dup2(self._fd, 1)
        os.dup2(self._fd, 2)
        self.is_taken = True

    def remove_if_empty(self) -> None:
        """Remove the log if we have made it and it is empty."""
        ours = os.fstat(self._fd)
        if not self._made or ours.st_size:
            return
        # By now another daemon may have put its log at this path.
        with suppress(OSError):
            if os.path.samestat(ours, os.lstat(self._path)):
                os.unlink(self._path)


def _why(path: str, exc: OSError) -> str:
    if os.path.islink(path):
        return "it is a symbolic link; name what it leads to with --log"
    with suppress(OSError):
        kind = os.lstat(path).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
            return "it is neither a regular file nor a device; name another with --log"
    return f"{exc.strerror}; name another with --log"
