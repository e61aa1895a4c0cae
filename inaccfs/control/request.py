"""A command that a peer has sent, and its answer. How they travel is peer.py's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.control.messages import Command
    from inaccfs.control.qmp import RequestId


class Passed(NamedTuple):
    """The fd that came with a command, whose carrying out takes or closes it."""

    # Of this mount; -1 if there is none.
    fd: int = -1
    # Why there is none, if one came.
    refusal: OSError | None = None


NO_FD: Final = Passed()


def close_passed(passed: Passed) -> None:
    """Close the fd, if there is one: of this mount, whose opens have no FLUSH."""
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
        # Closed once the command has been carried out.
        self.passed = passed

    def close(self) -> None:
        """Close the fd that came with it."""
        close_passed(self.passed)
        self.passed = NO_FD


class Answer:
    """The return of a command that has more than its value."""

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
        # Sent along, and closed then.
        self.fd: Final = fd
        # Of an array: where the next page of it begins.
        self.next: Final = next
        # Called when the reply has been sent.
        self.after: Final = after
