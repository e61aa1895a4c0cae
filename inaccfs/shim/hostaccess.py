"""Access of the host to the content of a file: mappings of shared pages, write(2).

A mapping is modelled by its page faults, kvm_gmem_fault_user_mapping(). The model keeps
no mapping, so a conversion has nothing to unmap, and the next access faults again.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from inaccfs.errnos import EHWPOISON, os_error
from inaccfs.errors import BusError, PageError
from inaccfs.shim import content
from inaccfs.shim.conversions import check_range
from inaccfs.shim.frames import Fetched, allocate

if TYPE_CHECKING:
    from inaccfs.shim.filestate import FileState
    from inaccfs.shim.memory import Pinner


async def read_shared(file: FileState, offset: int, length: int) -> bytes:
    """Read shared memory through a mapping. In bytes.

    Raises:
        OSError: ENODEV, the file cannot be mapped; `BusError` in place of SIGBUS.
    """
    await fault(file, *_pages(file, offset, length))
    return content.read(file, offset, length)


async def write_shared(file: FileState, offset: int, data: bytes) -> None:
    """Write to shared memory through a mapping; as `read_shared`."""
    await fault(file, *_pages(file, offset, len(data)))
    content.write(file, offset, data)


def _pages(file: FileState, offset: int, length: int) -> tuple[int, int]:
    return offset // file.page_size, -(-(offset + length) // file.page_size)


async def fault(file: FileState, start: int, end: int) -> None:
    """Fault pages of a mapping in: they are shared and have memory when this returns.

    It waits for punches and conversions, as for the invalidate_lock.

    Raises:
        OSError: ENODEV, the file cannot be mapped; `BusError`: EFAULT for a page that
            is private or past the end, EHWPOISON for a poisoned one, EPERM for a hole
            of a frozen file, or the errno of the allocation.
    """
    if not file.superblock.semantics.mappable:
        raise OSError(errno.ENODEV, "files cannot be mapped in these semantics")
    superblock = file.superblock
    low, high = superblock.around(start, end)
    is_short = (high - low) * file.page_size <= file.inline_bytes
    while True:
        await settle(file)
        _check_shared(file, start, end)
        try:
            if is_short:
                fill(file, start, end)
                return
            with file.turn.take():
                limiter = superblock.threads.changes
                await superblock.loop.in_thread(fill, file, start, end, limiter=limiter)
        except PageError as exc:
            text = f"SIGBUS: {exc.strerror}"
            raise BusError(exc.errno or 0, text, exc.offset) from exc
        except OSError as exc:
            text = f"SIGBUS: no memory for page {start}: {exc.strerror}"
            raise BusError(exc.errno or errno.EIO, text, start) from exc
        if not is_busy(file):
            # A conversion that did not see the caller's references may have ended.
            _check_shared(file, start, end)
            return


def _check_shared(file: FileState, start: int, end: int) -> None:
    """Raise `BusError` unless the file has these pages, and the host may use them."""
    try:
        check_range(file, start, end)
    except OSError as exc:
        past = max(start, file.size // file.page_size)
        raise BusError(errno.EFAULT, f"SIGBUS: {exc.strerror}", past) from None
    page = file.attributes.first(start, end, private=True)
    if page is not None:
        raise BusError(errno.EFAULT, f"SIGBUS: page {page} is private", page)
    bad = file.pages.poisoned.first(start, end)
    if bad is not None:
        raise BusError(EHWPOISON, f"SIGBUS: page {bad} is poisoned", bad)


def is_busy(file: FileState) -> bool:
    """Whether a punch, conversion or other long operation is in progress."""
    return file.notifiers.running or file.turn.taken


async def settle(file: FileState) -> None:
    """Wait until the file is not busy."""
    while is_busy(file):
        await file.notifiers.idle()
        await file.turn.wait()


def fill(file: FileState, start: int, end: int) -> None:
    """Fill the holes of some pages.

    Raises:
        OSError: ENOSPC, ENOMEM; `PageError`, EPERM, for a hole of a frozen file.
    """
    if not file.is_frozen:
        # Memory comes in whole granules.
        superblock = file.superblock
        low, high = superblock.around(start, end)
        offset = low * file.page_size
        length = min(high * file.page_size, file.size) - offset
        if not superblock.headroom.allows(length):
            superblock.headroom.check(file.fd, offset, length)
        allocate(file.fd, offset, length)
    elif (hole := content.first_hole_of(file, start, end)) is not None:
        raise PageError(
            errno.EPERM, f"page {hole} is a hole, and the file is frozen", hole
        )


async def pin(
    file: FileState,
    pinner: Pinner,
    start: int,
    end: int,
    most: int | None = None,
) -> Fetched:
    """pin_user_pages(), FOLL_LONGTERM, of a mapping's pages: *pinner* pins each.

    Such a pin is a reference, also where get-pfn takes none. Returns what `Pages.get`
    does.

    Raises:
        OSError: ENODEV, the file cannot be mapped; EAGAIN, EOPNOTSUPP as `Pages.get`;
            `PageError`, ENOMEM or EFAULT, for a page that cannot be faulted in, or that
            has changed before it was pinned. See vm_fault_to_errno() in
            include/linux/mm.h, without FOLL_HWPOISON.
    """
    try:
        await fault(file, start, end)
        return await file.pages.get(pinner, start, end, most)
    except OSError as exc:
        if exc.errno in (errno.ENODEV, errno.EAGAIN, errno.EOPNOTSUPP):
            raise
        number = errno.ENOMEM if exc.errno == errno.ENOMEM else errno.EFAULT
        page = exc.offset if isinstance(exc, PageError) else start
        raise PageError(number, str(exc.strerror), page) from exc


async def write(file: FileState, offset: int, data: bytes) -> None:
    """write(2) of whole shared pages, where that fills a file. In bytes.

    Raises:
        OSError: ENODEV where files are not filled so, or a page is private; EINVAL
            unless the range is of whole pages inside the file; EPERM for a hole of a
            frozen file; ENOSPC.
    """
    if not file.superblock.semantics.takes_writes:
        raise os_error(errno.ENODEV)
    end = offset + len(data)
    if (offset | len(data)) & (file.page_size - 1):
        raise os_error(errno.EINVAL)
    start, stop = offset // file.page_size, end // file.page_size
    await settle(file)
    check_range(file, start, stop)
    # The flag is granted to files that begin as shared.
    if file.attributes.first(start, stop, private=True) is not None:
        raise os_error(errno.ENODEV)
    fill(file, start, stop)
    content.write(file, offset, data)
