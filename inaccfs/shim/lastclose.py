"""The last close of a file whose notifiers do not keep it open: kvm_gmem_release()."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from inaccfs.shim.call import Kind, PageRange, Part
from inaccfs.shim.moved import tell
from inaccfs.shim.punching import steps

if TYPE_CHECKING:
    from inaccfs.shim.file import InaccessibleFile

log = logging.getLogger(__name__)


async def send_events(file: InaccessibleFile, count: int) -> None:
    """Send the events of a punch of all *count* pages, which stay.

    Never raises an Exception. The pages were marked before (`Pages.abandoned`), so that
    none is fetched again. Do not use the fd of *file*: the last weak open may have been
    closed before this task runs.
    """
    try:
        part = Part(PageRange(0, count), PageRange(0, 0))
        await tell(file.superblock, file.notifiers, steps(file, part, Kind.PUNCH))
    except Exception:
        log.exception("bug in telling that a file was closed")
