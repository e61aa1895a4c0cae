"""kvm_gmem_populate(): private pages get their first content from a source."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from inaccfs.errnos import EHWPOISON
from inaccfs.errors import PageError
from inaccfs.shim import content
from inaccfs.shim.conversions import check_range
from inaccfs.shim.hostaccess import fill, settle
from inaccfs.shim.slices import Slices

if TYPE_CHECKING:
    from inaccfs.shim.filestate import FileState


class Source(NamedTuple):
    """The pages that content comes from, of a file of the same mount."""

    file: FileState
    # The first page.
    start: int


async def populate(
    file: FileState,
    start: int,
    end: int,
    source: Source | None,
    who: int = 0,
) -> int:
    """Fill private pages from *source*; without it, they have their content already.

    *who* is the peer that asks for it, for traces.

    Holes are filled with zeros first. Each page is filled separately, while no punch
    or conversion runs. Returns how many pages were filled: fewer if a later one is
    refused.

    Raises:
        OSError: for the first page: EOPNOTSUPP in semantics without; EINVAL for a range
            that is empty or ends past the end, for a shared page, and without a source
            where one is needed; EFAULT for a page of the source that cannot be read,
            and if all users have closed the file; EHWPOISON; EPERM for a hole of a
            frozen file; ENOSPC.
    """
    with file.trace.command("populate", start, end, who) as traced:
        _check(file, start, end, source)
        done = await _populate_all(file, start, end, source)
        traced.end = start + done
    return done


def _check(file: FileState, start: int, end: int, source: Source | None) -> None:
    """Raises `OSError` for what forbids to populate any page."""
    rules = file.superblock.semantics
    if not rules.has_populate:
        raise OSError(
            errno.EOPNOTSUPP,
            "files are not populated by a command in these semantics (query-semantics)",
        )
    if source is None and rules.population == "populate":
        raise OSError(
            errno.EINVAL,
            "content cannot be there already in these semantics: name a source",
        )
    check_range(file, start, end)
    file.pages.check_open()


async def _populate_all(
    file: FileState, start: int, end: int, source: Source | None
) -> int:
    """Fill one page after the other; returns how many."""
    slices = Slices(file.superblock.loop)
    for page in range(start, end):
        try:
            await settle(file)
            # All may have closed the file while this waited.
            file.pages.check_open()
            await _populate_page(file, page, source, page - start)
        except OSError:
            if page == start:
                raise
            return page - start
        await slices.give()
    return end - start


async def _populate_page(
    file: FileState,
    page: int,
    source: Source | None,
    at: int,
) -> None:
    """`_populate`, in a thread and in a turn of the file's if pages are huge."""
    superblock, arguments = file.superblock, (file, page, source, at)
    if superblock.granule <= file.inline_bytes:
        _populate(*arguments)
        return
    with file.turn.take():
        await superblock.loop.in_thread(
            _populate, *arguments, limiter=superblock.threads.changes
        )


def _populate(
    file: FileState,
    page: int,
    source: Source | None,
    at: int,
) -> None:
    """Fill one page, from page *at* of *source*. In one step."""
    data = b""
    if source is not None:
        # Before the lock, as the kernel pins the source's page first.
        data = _read(source.file, source.start + at)
    # In the kernel's order: it gets the folio, and then checks the attribute.
    if file.pages.poisoned.first(page, page + 1) is not None:
        raise PageError(EHWPOISON, f"page {page} is poisoned", page)
    fill(file, page, page + 1)
    if not file.attributes.is_private(page):
        raise PageError(errno.EINVAL, f"page {page} is shared", page)
    if source is not None:
        content.write(file, page * file.page_size, data)


def _read(file: FileState, page: int) -> bytes:
    """A page of the source, as the host can read it.

    If attributes are not kept in the file, any page stands for host memory.
    """
    offset = page * file.page_size
    if offset + file.page_size > file.size:
        raise PageError(
            errno.EFAULT, f"page {page} of the source is past its end", page
        )
    if file.superblock.converts and file.attributes.is_private(page):
        raise PageError(errno.EFAULT, f"page {page} of the source is private", page)
    return content.read(file, offset, file.page_size)
