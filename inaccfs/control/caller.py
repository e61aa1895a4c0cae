"""The part of a peer that its session uses: its credentials, and its output."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Caller:
    """The credentials of a peer: our number for it, and SO_PEERCRED of unix(7)."""

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
    """The part of a connection that a session uses; see peeroutlet.PeerOutlet."""

    def send(self, data: bytes, fd: int = -1) -> None:
        """Send *data* and *fd*, and close *fd*. Never blocks, never raises."""

    def offer(self, data: bytes) -> bool:
        """Send *data* if there is room now; otherwise return False. Never raises."""

    def evict(self, reason: str, text: str) -> None:
        """Disconnect the peer. *reason* says why; *text* has more for the log."""
