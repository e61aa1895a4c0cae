"""A process that owns a mount: when it ends, for any reason, the mount ends.

The daemon gets a pidfd of the process. PR_SET_PDEATHSIG would follow the thread that
made the mount, and children of the process would keep a pipe open. It is only used to
continue a daemon that is stopped: SIGCONT does no harm when it comes too early.
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
    """The process to watch, and the directory to remove for it, in the daemon."""

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
        """Remove the directory if the process has ended. Called at the daemon's end."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        if self._scratch is not None and poller.poll(0):
            remove_scratch(self._scratch)


def remove_scratch(path: str | Path) -> str | None:
    """Remove the directory of a mount that has ended.

    Returns a path below it where something is still mounted, and removes nothing then:
    that would empty the other mount.
    """
    for place in mountinfo.below(os.path.realpath(path)):
        return place
    shutil.rmtree(path, ignore_errors=True)
    return None
