"""The files that are the private halves of a VM's slots.

Each VM opens a file once and maps its memory once, however many slots use it.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs import syscalls
from inaccfs.kvm.memory import FileMemory
from inaccfs.kvm.shim import WeakShim
from inaccfs.kvm.uapi import PAGE_SHIFT

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Sequence

    from inaccfs.kvm.shim import (
        Callback,
        Shim,
        ShimCallbacks,
        ShimExtent,
        ShimFile,
        ShimNotifier,
        ShimSemantics,
        WeakFile,
    )
    from inaccfs.kvm.sync import Sync

# Pages of 4 KiB: no file has so many.
_END: Final = 1 << 52


class Frames(NamedTuple):
    """Where whole pages of the file are, in units of 4 KiB."""

    pgoff: int
    pfn: int
    pages: int
    order: int
    # Whether they are private; None if attributes are not kept in the file.
    private: bool | None = None


# Not frozen: that would make each twice as slowly, and a put may have 65536.
@dataclass(slots=True)
class Run:
    """Frames that follow each other, in pages of the file."""

    pfn: int
    count: int


_pfn: Final = attrgetter("pfn")

# struct statx: stx_btime, seconds and nanoseconds.
_BTIME: Final = slice(80, 92)


class BackingFile:
    """A file that a VM uses. Units are 4 KiB pages unless said otherwise."""

    def __init__(
        self,
        shim: Shim,
        key: tuple[int, int],
        fd: int,
        sync: Sync,
        *,
        holds: bool = True,
        puts: bool = True,
        in_place: bool = False,
    ) -> None:
        """EINVAL if *fd* is not a file of the mount.

        *holds* says whether this keeps the file open; with a shim without a daemon it
        must. *puts* is False in semantics without references to put. *in_place* says
        whether attributes are kept in the file.
        """
        self._in_place: Final = in_place
        self._puts: Final = puts
        # Names the file without keeping it open; None if this keeps it open.
        self._name: Final = (
            shim.weak_file if not holds and isinstance(shim, WeakShim) else None
        )
        self.key: Final = key
        with ExitStack() as undo:
            if self._name is None:
                self._fd = os.dup(fd)
                undo.callback(os.close, self._fd)
                self._weak: WeakFile | None = None
                self.file: ShimFile = shim.file(fd)
            else:
                self._fd = fd
                self.file = self._weak = self._name(fd)
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

    @contextmanager
    def named(self) -> Iterator[ShimFile]:
        """The file, in a with block, to register a notifier for it."""
        if self._name is None:
            yield self.file
            return
        # Name it again: `file` has the fd of the first slot, which may be closed.
        file = self._name(self._fd)
        try:
            yield file
        finally:
            file.close()

    def listen(
        self,
        rules: ShimSemantics,
        pgoff: int,
        pages: int,
        *,
        invalidate: Callback,
        start: Callback,
        end: Callback,
        with_frames: bool = False,
        with_kinds: bool = False,
        with_zaps: bool = False,
    ) -> ShimNotifier:
        """Register a notifier for pages of 4 KiB, or bind them, as the rules say.

        *invalidate* is called for INVALIDATE and MEMORY_ERROR, *start* and *end* for
        INVALIDATE_START and INVALIDATE_END, if the rules have these events. The rest is
        as in `ShimCallbacks`.
        """
        callbacks: ShimCallbacks = {
            "with_frames": with_frames,
            "with_kinds": with_kinds,
            "with_zaps": with_zaps,
        }
        if "MEMORY_ERROR" in rules.events:
            callbacks["error"] = invalidate
        if "INVALIDATE_START" in rules.events:
            callbacks |= {"invalidate_start": start, "invalidate_end": end}
        with self.named() as file:
            if not rules.by_range:
                return file.register_notifier(invalidate, **callbacks)
            first, last = pgoff >> self.shift, -(-(pgoff + pages) >> self.shift)
            return file.bind(first, last, invalidate, **callbacks)

    def use(self, fd: int) -> None:
        """One more slot uses the file, which its VMM has open as *fd*."""
        if self._name is not None:
            self._fd = fd

    @property
    def released(self) -> bool:
        """Whether no other process has the file open. Asks the daemon."""
        return self._weak is not None and not self._weak.query().opens

    @property
    def fd(self) -> int:
        """An fd of the file, for the VMM to punch the pages that it converts.

        Raises:
            OSError: EBADF, if the slots do not hold the file and the VMM has closed it.
        """
        if self._name is not None:
            found = os.fstat(self._fd)
            # The VMM may have closed it, and the number may be another file's by now.
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
            page = self.file.get_pfn(first)
            private = bool(page.private) if self._in_place else None
            return [Frames(first << shift, page.pfn, 1 << shift, page.order, private)]
        found = self.file.get_pfns(first, last - first + 1)
        if self._in_place:
            return [self._frames(each, bool(each.private)) for each in found]
        return [
            Frames(each.offset << shift, each.pfn, each.count << shift, each.order)
            for each in found
        ]

    def _frames(self, extent: ShimExtent, private: bool | None) -> Frames:
        shift = self.shift
        pages = extent.count << shift
        return Frames(extent.offset << shift, extent.pfn, pages, extent.order, private)

    def attribute(self, pgoff: int) -> tuple[bool, int]:
        """Whether a page of 4 KiB is private, and the end of the pages that are alike.

        kvm_gmem_is_private(): no lock is held, so it may be out of date at once. All is
        shared once the file has been closed by all: the attributes vanish with it.
        """
        try:
            found = self.file.query_memory_attribute(pgoff >> self.shift)
        except OSError as exc:
            if exc.errno != errno.EFAULT:
                raise
            return False, _END
        return found.private, (found.offset + found.count) << self.shift

    def convert(self, pgoff: int, pages: int, *, private: bool) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2 of pages of 4 KiB.

        Raises:
            OSError: EAGAIN where a page is referenced; EINVAL on a hugetlbfs for parts
                of its pages.
        """
        start, end = pgoff >> self.shift, (pgoff + pages) >> self.shift
        if (start << self.shift, end << self.shift) != (pgoff, pgoff + pages):
            raise OSError(errno.EINVAL, "a page of the file is converted as a whole")
        self.file.set_memory_attributes(start, end - start, private)

    def pin(self, pgoff: int, pages: int) -> list[Frames]:
        """Pin shared pages of 4 KiB, until `unpin`. EFAULT for a private one."""
        shift = self.shift
        first, last = pgoff >> shift, (pgoff + pages - 1) >> shift
        return [
            self._frames(extent, False if self._in_place else None)
            for extent in self.file.pin_pages(first, last - first + 1)
        ]

    def unpin(self, frames: Sequence[Frames]) -> None:
        """Give back what `pin` has pinned."""
        self.file.unpin_pages(
            [Run(each.pfn, each.pages >> self.shift) for each in frames]
        )

    def populate(
        self, pgoff: int, pages: int, source: ShimFile | None, source_offset: int
    ) -> int:
        """Give pages of 4 KiB their first content; returns how many were done."""
        first, last = pgoff >> self.shift, (pgoff + pages - 1) >> self.shift
        count = last - first + 1
        done = self.file.populate(first, count, source, source_offset)
        return min(done << self.shift, pages)

    def put(self, frames: Sequence[Frames]) -> None:
        """Put the references that `get` took, without waiting for the reply."""
        if not self._puts:
            return
        if len(frames) == 1:
            pfn, pages = frames[0].pfn, frames[0].pages
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
        if self._name is None:
            os.close(self._fd)
        self.file.close()


# The VM that made each file, by `_identity`.
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
        # Represents the VM among the owners, where it may outlive the VM.
        self._owner: Final = object()

    def own(self, fd: int) -> None:
        """Make a file this VM's, for as long as it lives."""
        with _owners_lock:
            _owners[_identity(fd)] = self._owner

    def _check_owner(self, fd: int) -> None:
        """EINVAL if another VM made the file. A file that no VM made has no owner."""
        if _owners and self._rules.kvm_file_of_one_vm:
            with _owners_lock:
                owner = _owners.get(_identity(fd), self._owner)
            if owner is not self._owner:
                raise OSError(errno.EINVAL, "the file is another VM's")

    def open(self, fd: int) -> BackingFile:
        """Return the file of *fd*, and count one more slot that uses it.

        Raises:
            OSError: EINVAL if *fd* is not of this mount, or another VM's; the errno of
            the rule kvm_bad_fd if *fd* is not an fd. Its cause is the actual error.
        """
        try:
            found = os.fstat(fd)
            key = (found.st_dev, found.st_ino)
            file = self._files.get(key)
            self._check_owner(fd)
            if file is None:
                file = BackingFile(
                    self._shim,
                    key,
                    fd,
                    self._sync,
                    holds=self._rules.kvm_slot_holds_file,
                    puts=self._rules.keeps_references,
                    in_place=self._rules.in_place,
                )
        except OverflowError as exc:
            raise OSError(self._bad_fd, f"private_fd {fd} is no number of one") from exc
        except OSError as exc:
            if exc.errno not in (errno.EBADF, errno.EINVAL):
                raise
            number = self._bad_fd if exc.errno == errno.EBADF else errno.EINVAL
            raise OSError(number, f"private_fd {fd}: {exc.strerror}") from exc
        file.use(fd)
        self._files[key] = file
        file.slots += 1
        return file

    def release(self, file: BackingFile) -> None:
        """Drop one slot's use of it."""
        file.slots -= 1
        if not file.slots:
            del self._files[file.key]
            file.close()
