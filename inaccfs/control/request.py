"""A peer's command, and its answer. `inaccfs.control.peer` reads and sends them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.control.messages import Command
    from inaccfs.control.qmp import RequestId


class Passed(NamedTuple):
    """The fd that came with a command. Whoever executes the command owns it."""

    # An fd of this mount; -1 if there is none.
    fd: int = -1
    # Why there is none, if an fd came.
    refusal: OSError | None = None


NO_FD: Final = Passed()


def close_passed(passed: Passed) -> None:
    """Close the fd, if there is one. This cannot hang: our mount has no FLUSH."""
    if passed.fd >= 0:
        os.close(passed.fd)


class Request:
    """A command that has been read, with the fd that came with it."""

    __slots__ = ("command", "id", "passed")

    def __init__(
        self, command: Command, request_id: RequestId, passed: Passed = NO_FD
    ) -> None:
        self.command: Final = command
        self.id: Final = request_id
        # Closed when the command was executed.
        self.passed = passed

    def close(self) -> None:
        """Close the fd that came with it."""
        close_passed(self.passed)
        self.passed = NO_FD


class Answer:
    """The return of a command that is more than a value."""

    __slots__ = ("after", "fd", "next", "value")

    def __init__(
        self,
        value: object,
        *,
        fd: int = -1,
        next: int | None = None,  # noqa: A002 - the protocol's name
        after: Callable[[], None] | None = None,
    ) -> None:
        self.value: Final = value
        # An fd to send along, and then to close.
        self.fd: Final = fd
        # For an array: where its next page begins.
        self.next: Final = next
        # Called when the reply has been sent.
        self.after: Final = after
