"""The last close of a file whose notifiers do not keep it open: kvm_gmem_release()."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from inaccfs.shim.call import Kind, Part
from inaccfs.shim.moved import tell

if TYPE_CHECKING:
    from inaccfs.shim.file import InaccessibleFile

log = logging.getLogger(__name__)


async def abandoned(file: InaccessibleFile) -> None:
    """Send the events of a punch of all pages, which stay. Never raises an Exception.

    The pages were marked before (`Pages.abandoned`), so that none is fetched again.
    """
    try:
        nothing = (0, 0)
        steps = file.pages.steps(Part((0, file.count), nothing), Kind.PUNCH)
        await tell(file.superblock, file.notifiers, steps)
    except Exception:
        log.exception("bug in telling that a file was closed")
