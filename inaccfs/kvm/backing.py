"""The files that are the private halves of a VM's slots.

Each VM opens a file once and maps its memory once, however many slots use it.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

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


@dataclass(frozen=True, slots=True)
class Run:
    """Frames that follow each other, in pages of the file."""

    pfn: int
    count: int


_pfn: Final = attrgetter("pfn")


class BackingFile:
    """A file, as one VM uses it. Units are 4 KiB pages unless said otherwise."""

    def __init__(
        self,
        shim: Shim,
        key: tuple[int, int],
        fd: int,
        sync: Sync,
        *,
        puts: bool = True,
    ) -> None:
        """Keep a duplicate of *fd*. EINVAL if it is not a file of the mount.

        *puts* is False where the semantics give no references to put.
        """
        self._puts: Final = puts
        self.key: Final = key
        with ExitStack() as undo:
            # The VMM uses it to punch the pages that it converts.
            self.fd: Final = os.dup(fd)
            undo.callback(os.close, self.fd)
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
        if not self._puts:
            return
        if len(frames) == 1:
            _, pfn, pages, _ = frames[0]
            self.file.put_pfn(pfn, pages >> self.shift, wait=False)
            return
        # Sorted by frame and not by pgoff, which makes fewer runs: frames that the
        # kernel allocates one after the other are often contiguous in falling order.
        runs: list[Run] = []
        start = end = 0
        for each in sorted(frames, key=_pfn):
            if each.pfn != end:
                if end:
                    runs.append(Run(start, (end - start) >> self.shift))
                start = each.pfn
            end = each.pfn + each.pages
        if end:
            runs.append(Run(start, (end - start) >> self.shift))
        self.file.put_pfns(runs, wait=False)

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
        """Close the file. Call it when no thread uses it any more."""
        self.window = None
        if self._memory is not None:
            self._memory.close()
        os.close(self.fd)
        self.file.close()


class BackingFiles:
    """The files of a VM. Used under slots_lock."""

    def __init__(self, shim: Shim, semantics: ShimSemantics, sync: Sync) -> None:
        self._shim: Final = shim
        self._sync: Final = sync
        self._puts: Final = semantics.keeps_references
        self._files: Final[dict[tuple[int, int], BackingFile]] = {}

    def open(self, fd: int) -> BackingFile:
        """Return the file of *fd*, which one more slot uses from now on.

        Raises:
            OSError: EINVAL if *fd* is not of this mount, as in v8 after a failed
                fget(); the error's cause is the actual failure.
        """
        try:
            found = os.fstat(fd)
            key = (found.st_dev, found.st_ino)
            file = self._files.get(key)
            if file is None:
                file = self._files[key] = BackingFile(
                    self._shim, key, fd, self._sync, puts=self._puts
                )
        except OSError as exc:
            if exc.errno not in (errno.EBADF, errno.EINVAL):
                raise
            raise OSError(errno.EINVAL, f"private_fd {fd}: {exc.strerror}") from exc
        file.slots += 1
        return file

    def release(self, file: BackingFile) -> None:
        """Drop one slot's use of it."""
        file.slots -= 1
        if not file.slots:
            del self._files[file.key]
            file.close()
