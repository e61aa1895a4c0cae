"""What can go wrong, by kind; one root, translated once at each edge.

`InaccfsError` is what a user can put right: the command line prints it in one
line. Rules of the shim refuse with a plain `OSError`, because an errno is what
the caller of a system call gets; a bug stays whatever Python raised.
"""

from __future__ import annotations

from typing import Final


class InaccfsError(Exception):
    """Something the user can put right; the message says what to do, in one line."""


class MountError(InaccfsError):
    """The mount could not be made."""


class BackingError(MountError):
    """The backing is missing, of the wrong kind, or was refused by the kernel."""


class UnmountError(InaccfsError):
    """The mount could not be undone."""


class OptionError(InaccfsError):
    """An option does not exist, is malformed, or contradicts another."""


class NotMountedError(InaccfsError):
    """There is no inaccfs mount where one was named."""


class NoAnswerError(InaccfsError):
    """A daemon is there and does not answer: it is stopped."""


class NoEntryError(InaccfsError):
    """There is a mount, and the kernel keeps this user from looking at it."""


class DeadDaemonError(NotMountedError):
    """There is a mount, but its daemon is dead."""


class DaemonFailedError(MountError):
    """The daemon has not come up, and has written the reason to its standard error."""

    def __init__(self, status: int) -> None:
        super().__init__("the daemon did not start: see what it says")
        self.status: Final = status
        """Its exit status, as `inaccfs mount` has it."""
