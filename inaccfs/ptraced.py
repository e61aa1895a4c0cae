"""Keeps other processes of the same user out of the daemon, and finds its tracer.

Only a process with CAP_SYS_PTRACE can ptrace(2) an undumpable process or open its files
in /proc. But a tracer that is attached already stays attached. See ptrace(2), "Ptrace
access mode checking", and PR_SET_DUMPABLE in prctl(2).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from inaccfs import syscalls
from inaccfs.errors import MountError

_PROC: Final = Path("/proc")


class Tracer(NamedTuple):
    """A process that traces this one."""

    pid: int
    name: str
    # Real, effective and saved; None where /proc does not show them (hidepid=).
    uids: frozenset[int] | None

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    @property
    def is_foreign(self) -> bool:
        """Whether it may be another user's, and not root's."""
        return self.uids is None or not self.uids <= {0, os.geteuid()}


def hide() -> Tracer | None:
    """Make this process undumpable; return the tracer that is attached, if any.

    Raises:
        MountError: it is traced by another user.
    """
    syscalls.set_dumpable(False)
    # From now on no tracer can attach that this check would miss.
    found = tracer()
    if found is not None and found.is_foreign:
        whose = "an unknown user" if found.uids is None else f"user {min(found.uids)}"
        raise MountError(
            f"{found} of {whose} traces this process, and could reach the memory: "
            "detach it, or trace as the mount's owner or as root"
        )
    return found


def tracer(proc: Path = _PROC) -> Tracer | None:
    """The tracer of this process, as far as *proc* shows it."""
    while pid := int(_fields(proc / "self")["TracerPid"]):
        try:
            fields = _fields(proc / str(pid))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            # It has just ended, or is hidden.
            if int(_fields(proc / "self")["TracerPid"]) == pid:
                return Tracer(pid, "a hidden process", None)
        else:
            name = "".join(one if one.isprintable() else "?" for one in fields["Name"])
            uids = frozenset(map(int, fields["Uid"].split()[:3]))
            return Tracer(pid, name, uids)
    return None


def _fields(process: Path) -> dict[str, str]:
    """/proc/PID/status; see proc_pid_status(5)."""
    text = (process / "status").read_text(encoding="utf-8", errors="replace")
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}
