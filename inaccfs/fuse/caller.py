"""The process that makes a request: its groups and capabilities, from proc(5).

FUSE sends only its pid. The process waits for the reply meanwhile, so its pid is not
reused.
"""

from __future__ import annotations

import os
from typing import Final

from inaccfs.syscalls import CAP_FOWNER, CAP_FSETID, CAP_SYS_ADMIN

_OWN: Final = "/proc/self/ns/user"


class Caller:
    """A process. If /proc does not show it, it has no capabilities and no groups."""

    def __init__(self, pid: int) -> None:
        """*pid* is 0 if the process is not visible in our pid namespace."""
        self._capabilities = 0
        self._uid = -1
        self._groups: frozenset[int] = frozenset()
        try:
            with open(
                f"/proc/{pid}/status", encoding="utf-8", errors="replace"
            ) as file:
                fields = dict(line.split(":", 1) for line in file)
            # Real, effective, saved, file system: the last counts for files.
            self._uid = int(fields["Uid"].split()[3])
            groups = fields["Groups"].split()
            self._groups = frozenset(map(int, [fields["Gid"].split()[3], *groups]))
            # Capabilities in another user namespace have no effect here.
            if os.stat(f"/proc/{pid}/ns/user").st_ino == os.stat(_OWN).st_ino:
                self._capabilities = int(fields["CapEff"], 16)
        except (OSError, KeyError):
            return

    def may_see_trusted(self) -> bool:
        """Whether listxattr(2) shows it trusted attributes: xattr(7)."""
        return self._has(CAP_SYS_ADMIN)

    def may_set_group(self, gid: int) -> bool:
        """Whether it may set the set-group-ID bit of a file of *gid*: chmod(2)."""
        return gid in self._groups or self._has(CAP_FSETID)

    def is_like_owner(self, uid: int) -> bool:
        """Whether it may do with a file of *uid* what its owner may: chmod(2)."""
        return uid == self._uid or self._has(CAP_FOWNER)

    def _has(self, capability: int) -> bool:
        return bool(self._capabilities >> capability & 1)
