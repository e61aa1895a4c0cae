"""The files that are the private halves of a VM's slots.

Each VM opens a file once and maps its memory once, however many slots use it.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import ExitStack
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs import syscalls
from inaccfs.kvm.memory import FileMemory
from inaccfs.kvm.uapi import PAGE_SHIFT

if TYPE_CHECKING:
    import mmap
    from collections.abc import Sequence

    from inaccfs.kvm.shim import Shim, ShimFile, ShimSemantics
    from inaccfs.kvm.sync import Sync


class Frames(NamedTuple):
    """Where whole pages of the file are, in units of 4 KiB."""

    pgoff: int
    pfn: int
    pages: int
    order: int


_pfn: Final = attrgetter("pfn")

# struct statx: stx_btime, seconds and nanoseconds.
_BTIME: Final = slice(80, 92)


class BackingFile:
    """A file, as one VM uses it. Units are 4 KiB pages unless said otherwise."""

    def __init__(
        self,
        shim: Shim,
        key: tuple[int, int],
        fd: int,
        sync: Sync,
        *,
        holds: bool = True,
        puts: bool = True,
    ) -> None:
        """EINVAL if *fd* is not a file of the mount.

        *holds* is whether a duplicate of *fd* is kept, which keeps the file open.
        *puts* is False where the semantics give no references to put.
        """
        self._puts: Final = puts
        self._holds: Final = holds
        self.key: Final = key
        with ExitStack() as undo:
            self._fd: Final = os.dup(fd) if holds else fd
            if holds:
                undo.callback(os.close, self._fd)
            self.file: Final[ShimFile] = shim.file(fd)
            undo.callback(self.file.close)
            info = self.file.query()
            undo.pop_all()
        self.ino: Final = info.ino
        # log2 of the number of 4 KiB pages in a page of the file: 9 on a hugetlbfs.
        self.shift: Final = (info.page_size >> PAGE_SHIFT).bit_length() - 1
        # The number of slots that use it. Guarded by slots_lock.
        self.slots = 0
        # Guards the next two. Held across the get-memory call.
        self._memory_lock: Final = sync.lock("memory_lock")
        self._memory: FileMemory | None = None
        # The mapping that vCPUs copy from and to. They read this without the lock; it
        # is only ever replaced by a longer one.
        self.window: mmap.mmap | None = None

    @property
    def fd(self) -> int:
        """An fd of the file, for the VMM to punch the pages that it converts.

        Raises:
            OSError: EBADF, if the slots do not hold the file and the VMM has closed it.
        """
        if not self._holds:
            found = os.fstat(self._fd)
            # The number may be another file's by now.
            if (found.st_dev, found.st_ino) != self.key:
                raise OSError(errno.EBADF, f"private_fd {self._fd} is another file now")
        return self._fd

    def get(self, pgoff: int, pages: int) -> list[Frames]:
        """Return the frames of pages, with a reference to each page of the file.

        On a hugetlbfs they may begin earlier and end later than asked for.
        """
        shift = self.shift
        first, last = pgoff >> shift, (pgoff + pages - 1) >> shift
        if first == last:
            # Nearly every fault asks for one page, and get-pfn of one is cheaper.
            found = self.file.get_pfn(first)
            return [Frames(first << shift, found.pfn, 1 << shift, found.order)]
        return [
            Frames(
                extent.offset << shift, extent.pfn, extent.count << shift, extent.order
            )
            for extent in self.file.get_pfns(first, last - first + 1)
        ]

    def put(self, frames: Sequence[Frames]) -> None:
        """Put the references that `get` took, without waiting for the reply."""
        if len(frames) == 1:
            _, pfn, pages, _ = frames[0]
            self._put(pfn, pfn + pages)
            return
        # Sorted by frame and not by pgoff, which makes fewer calls: frames that the
        # kernel allocates one after the other are often contiguous in falling order.
        start = end = 0
        for each in sorted(frames, key=_pfn):
            if each.pfn != end:
                self._put(start, end)
                start = each.pfn
            end = each.pfn + each.pages
        self._put(start, end)

    def _put(self, start: int, end: int) -> None:
        if end > start and self._puts:
            self.file.put_pfn(start, (end - start) >> self.shift, wait=False)

    def reach(self, end: int) -> None:
        """Make `window` map the pages up to *end*, as far as the file has them.

        Raises:
            OSError: EPERM where the mount refuses get-memory.
        """
        size = end << PAGE_SHIFT
        if self.window is not None and len(self.window) >= size:
            return
        with self._memory_lock:
            if self._memory is None:
                self._memory = FileMemory(self.file.get_memory())
            self.window = self._memory.reach(size)

    def close(self) -> None:
        """Close the file. Call it once nobody uses it any more."""
        self.window = None
        if self._memory is not None:
            self._memory.close()
        if self._holds:
            os.close(self._fd)
        self.file.close()


# The VM that has made a file, by `_identity`.
_owners: Final[dict[tuple[int, int, bytes], object]] = {}
_owners_lock: Final = threading.Lock()


def _identity(fd: int) -> tuple[int, int, bytes]:
    """Device, inode and time of birth, which no two files ever share."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino, syscalls.statx(fd)[_BTIME]


class BackingFiles:
    """The files of a VM. Used under slots_lock."""

    def __init__(self, shim: Shim, semantics: ShimSemantics, sync: Sync) -> None:
        self._shim: Final = shim
        self._sync: Final = sync
        self._rules: Final = semantics
        self._bad_fd: Final[int] = getattr(errno, semantics.kvm_bad_fd)
        self._files: Final[dict[tuple[int, int], BackingFile]] = {}
        # What stands for the VM among the owners: it may outlive the VM.
        self._owner: Final = object()

    def own(self, fd: int) -> None:
        """Make a file this VM's, for as long as it lives."""
        with _owners_lock:
            _owners[_identity(fd)] = self._owner

    def _check_owner(self, fd: int) -> None:
        """EINVAL if the file is another VM's. What no VM has made is nobody's."""
        if _owners and self._rules.kvm_file_of_one_vm:
            with _owners_lock:
                owner = _owners.get(_identity(fd), self._owner)
            if owner is not self._owner:
                raise OSError(errno.EINVAL, "the file is another VM's")

    def open(self, fd: int) -> BackingFile:
        """Return the file of *fd*, which one more slot uses from now on.

        Raises:
            OSError: EINVAL if *fd* is not of this mount, or another VM's; the errno of
                the rule kvm_bad_fd if it is none. Its cause is the actual error.
        """
        try:
            found = os.fstat(fd)
            key = (found.st_dev, found.st_ino)
            file = self._files.get(key)
            self._check_owner(fd)
            if file is None:
                file = BackingFile(
                    *(self._shim, key, fd, self._sync),
                    holds=self._rules.kvm_slot_holds_file,
                    puts=self._rules.keeps_references,
                )
        except OverflowError as exc:
            raise OSError(self._bad_fd, f"private_fd {fd} is no number of one") from exc
        except OSError as exc:
            if exc.errno not in (errno.EBADF, errno.EINVAL):
                raise
            number = self._bad_fd if exc.errno == errno.EBADF else errno.EINVAL
            raise OSError(number, f"private_fd {fd}: {exc.strerror}") from exc
        self._files[key] = file
        file.slots += 1
        return file

    def release(self, file: BackingFile) -> None:
        """Drop one slot's use of it."""
        file.slots -= 1
        if not file.slots:
            del self._files[file.key]
            file.close()
