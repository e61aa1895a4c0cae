"""A process that holds a mount: when it ends, so does the mount, whatever ended it.

The daemon is handed a pidfd of it. PR_SET_PDEATHSIG would follow the thread that made
the mount, and a pipe would be kept open by what the process forks.
"""

from __future__ import annotations

import os
import select
import shutil
from typing import TYPE_CHECKING, Final

from inaccfs import mountinfo

if TYPE_CHECKING:
    from pathlib import Path


class Holder:
    """The daemon's side: a process to watch, and what to tidy up for it."""

    def __init__(self, pidfd: int, scratch: str | None) -> None:
        """*scratch* is the directory that the process has made for this mount."""
        os.set_inheritable(pidfd, False)
        self._pidfd: Final = pidfd
        self._scratch: Final = scratch

    async def wait(self) -> None:
        """Wait until the process has ended, with all of its threads."""
        from inaccfs.readiness import wait_readable

        await wait_readable(self._pidfd)

    def clean_up(self) -> None:
        """At the daemon's end: do what the process cannot do any more."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if self._scratch is not None and poller.poll(0):
            remove_scratch(self._scratch)


def remove_scratch(path: str | Path) -> str | None:
    """Remove the directory of a mount that has gone; returns what is in the way.

    That is where something is still mounted: whose ever it is, it must not be emptied.
    """
    for place in mountinfo.below(os.path.realpath(path)):
        return place
    shutil.rmtree(path, ignore_errors=True)
    return None
