"""Who a peer is."""

from __future__ import annotations

import os
from dataclasses import dataclass


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
