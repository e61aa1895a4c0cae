"""What the sessions of a mount share. It knows neither sessions nor sockets."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from inaccfs.control.limits import Policy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from inaccfs.control.openfiles import Files
    from inaccfs.control.registration import Registration
    from inaccfs.shim.superblock import Superblock
    from inaccfs.status import Status


@dataclass(frozen=True, slots=True)
class Actions:
    """What commands do to the daemon."""

    status: Callable[[], Awaitable[Status]]
    quit: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has connected: a number of ours, and SO_PEERCRED of unix(7)."""

    number: int
    pid: int
    uid: int
    gid: int

    @property
    def is_owner(self) -> bool:
        """Whether it is root or the mount's owner, which is the daemon's user."""
        return self.uid in (0, os.geteuid())

    def __str__(self) -> str:
        return f"peer {self.number} (pid {self.pid}, uid {self.uid})"


class Outbound(Protocol):
    """What a session needs of a connection; see outlet.PeerOutlet."""

    def send(self, data: bytes, fd: int = -1) -> None:
        """Send *data*, and *fd*, which is closed then. Never blocks, never raises."""

    def evict(self, reason: str, text: str) -> None:
        """Disconnect the peer. *reason* says why; *text* tells the log more."""


@dataclass(frozen=True, slots=True)
class Context:
    """The mount that sessions serve, and what they all have of it."""

    superblock: Superblock
    files: Files
    actions: Actions
    policy: Policy = field(default_factory=Policy)
    # Those that are connected, by number.
    callers: dict[int, Caller] = field(default_factory=dict)
    # The notifiers of all sessions, by number, and the numbers of those to come.
    notifiers: dict[int, Registration] = field(default_factory=dict)
    notifier_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
