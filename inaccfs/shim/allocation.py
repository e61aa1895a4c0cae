"""A long allocation, in a process of its own because only that can be interrupted.

A tmpfs that is told to stop gives back what it had taken, which nobody else can do
as exactly. But it stops for a fatal signal only: since Linux 6.17 a large fallocate(2)
takes no notice of others, and a fatal one for a thread is one for the whole daemon.
So fallocate(1) makes the call, on an fd that it inherits, and is killed when the
caller loses patience.
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

# How long a killed allocation may take to end. If it has not by then it is giving back
# what it had taken, and EINTR is certain.
_GRACE_SECONDS: Final = 0.03

_ERRNO_BY_TEXT: Final = {os.strerror(number): number for number in errno.errorcode}


def command(fd: int, mode: int, offset: int, length: int) -> list[str]:
    """The fallocate(1) call for an inherited *fd*; *mode* is 0 or KEEP_SIZE."""
    keep_size = ["--keep-size"] if mode & FALLOC_FL_KEEP_SIZE else []
    return [
        *("fallocate", *keep_size, "--offset", str(offset), "--length", str(length)),
        f"/proc/self/fd/{fd}",
    ]


async def allocate(
    arguments: Sequence[str], fd: int, interrupted: trio.Event
) -> trio.Process | None:
    """Run a `command` until it is done or *interrupted* is set.

    Returns None when the memory is there. When it was interrupted and is still giving
    the memory back, returns the process that does so: for the caller that is EINTR.

    Raises:
        FileNotFoundError: there is no fallocate(1).
        OSError: the errno that fallocate(2) gave it, or EINTR if it ended at once.
    """
    process = await trio.lowlevel.open_process(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[fd],
        # The errno comes as text, in this locale.
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_kill_when, interrupted, process, nursery.cancel_scope)
            await process.wait()
            nursery.cancel_scope.cancel()
    finally:
        # The daemon ends, or the caller has been told EINTR: nobody wants it any more.
        if process.returncode is None:
            process.kill()
    if process.returncode is None:
        return process
    if process.returncode != 0:
        raise await _error(process)
    return None


async def _kill_when(
    interrupted: trio.Event, process: trio.Process, scope: trio.CancelScope
) -> None:
    await interrupted.wait()
    process.kill()
    await trio.sleep(_GRACE_SECONDS)
    scope.cancel()


async def _error(process: trio.Process) -> OSError:
    """What fallocate(1) died of, as an errno."""
    if process.returncode is not None and process.returncode < 0:
        return OSError(errno.EINTR, os.strerror(errno.EINTR))
    assert process.stderr is not None
    text = (await process.stderr.receive_some()).decode(errors="replace").strip()
    number = _ERRNO_BY_TEXT.get(text.rpartition(": ")[2])
    if number is None:
        log.error("fallocate(1) failed: %s", text)
        number = errno.EIO
    return OSError(number, os.strerror(number))
