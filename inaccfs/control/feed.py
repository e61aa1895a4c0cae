"""The queue of one trace: records that wait to be sent, and their names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.control.messages import TraceRecord
from inaccfs.errnos import NAMES
from inaccfs.shim.trace import BY_PROCESSES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from inaccfs.control.caller import Caller
    from inaccfs.control.mountfiles import Files
    from inaccfs.shim.trace import Happened, What

# The most records that may wait: some megabytes, and more than a tenth of a second's.
MOST_WAITING: Final = 16384


class _Process(NamedTuple):
    pid: int
    command: str


class Feed:
    """Keeps records until they are sent, or drops and counts them.

    Names are looked up at once: the process that makes a system call, and the file,
    still exist when the call is traced.
    """

    def __init__(
        self,
        kinds: Collection[What],
        callers: Mapping[int, Caller],
        files: Files,
        wake: Callable[[], object],
    ) -> None:
        """Keep these *kinds*, or all if there are none.

        *callers* are the peers by number. *wake* is called when the first record waits.
        """
        self._kinds: Final = frozenset(kinds)
        self._callers: Final = callers
        self._files: Final = files
        self._wake: Final = wake
        self._waiting: Final[list[Happened]] = []
        # For the waiting records: processes by pid, and peers by number.
        self._processes: Final[dict[int, _Process]] = {}
        self._peers: Final[dict[int, _Process]] = {}
        # For the waiting records: names of files, by inode number.
        self._names: Final[dict[int, str]] = {}
        # How many records were sent, and how many were dropped.
        self.taken = 0
        self.lost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def hear(self, happened: Happened) -> None:
        """A listener of `inaccfs.shim.trace.Trace`."""
        if self._kinds and happened.what not in self._kinds:
            return
        waiting = self._waiting
        if len(waiting) >= MOST_WAITING:
            self.lost += 1
            return
        waiting.append(happened)
        who, ino = happened.who, happened.file
        if ino not in self._names:
            self._names[ino] = self._files.name(ino)
        if happened.what in BY_PROCESSES:
            if who not in self._processes:
                self._processes[who] = _Process(who, command_of(who))
        elif who not in self._peers and (caller := self._callers.get(who)):
            self._peers[who] = _Process(caller.pid, command_of(caller.pid))
        if len(waiting) == 1:
            self._wake()

    def first(self, most: int) -> list[TraceRecord]:
        """The first waiting records, at most *most*. They stay until `drop`."""
        return [self._record(one) for one in self._waiting[:most]]

    def drop(self, count: int) -> None:
        """Forget the first *count* records, which have been sent."""
        del self._waiting[:count]
        self.taken += count
        if not self._waiting:
            # Pids are reused, and processes and files change their names.
            self._processes.clear()
            self._peers.clear()
            self._names.clear()

    def give_up(self) -> None:
        """Count all waiting records as lost."""
        self.lost += len(self._waiting)
        self._waiting.clear()

    def _record(self, happened: Happened) -> TraceRecord:
        who = happened.who
        by_process = happened.what in BY_PROCESSES
        process = (self._processes if by_process else self._peers).get(who)
        error = happened.error
        return TraceRecord(
            time=happened.time,
            kind=happened.what,
            ino=happened.file,
            file=self._names.get(happened.file, ""),
            start=happened.start,
            end=happened.end,
            began=happened.began,
            cause=happened.cause,
            error=NAMES.get(error, f"E{error}") if error else "",
            pid=0 if process is None else process.pid,
            command="" if process is None else process.command,
            peer=0 if by_process else who,
            notifier=happened.notifier,
            event=happened.event,
            sequence=happened.sequence,
        )


def command_of(pid: int) -> str:
    """/proc/PID/comm; empty if there is none, or it cannot be read. Never raises."""
    if not pid:
        return ""
    try:
        fd = os.open(f"/proc/{pid}/comm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, 64).decode(errors="backslashreplace").rstrip("\n")
        finally:
            os.close(fd)
    except OSError:
        # The process has ended, or the daemon has no free fd.
        return ""
