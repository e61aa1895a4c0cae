"""The VM that `inaccfs kvm stress` runs, with an oracle that records all its pages.

The file's pages are cells of the oracle, and so are the pages of each slot's shared
half. One slot maps the whole file, or its first half where ranges are exclusive. The
other slots are windows on parts of the file. They are made and deleted at gfns that are
never reused, so that each gfn belongs to one cell for good.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.oracle import Oracle
from inaccfs.kvm.uapi import KVM_MEM_PRIVATE, PAGE_SHIFT
from inaccfs.kvm.vm import VM
from inaccfs.kvm.vmm import Vmm
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH, fallocate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inaccfs.client import Client
    from inaccfs.kvm.oracle import Cell, Change

# The pages that slots map, and after them those of devices.
FILE_PAGES: Final = 4096
DMA_PAGES: Final = 512
WINDOW_PAGES: Final = (1, 16, 100, 512, 1024)

# Far above the slot of the file; windows begin the largest window's size apart.
_FIRST_WINDOW_GFN: Final = 1 << 20
_WINDOW_STRIDE: Final = max(WINDOW_PAGES)

# After so many faults left alone, the page of the next one is punched.
_PUNCHED_FAULTS: Final = 40

# Seconds that callbacks wait, in turn, before they zap removed pages.
_PAUSES: Final = (0, 0, 0.001, 0, 0.0002, 0, 0)


class Refused(Exception):
    """The rules refused a call, so nothing has changed."""


@dataclass(frozen=True, eq=False, slots=True)
class Window:
    """A slot, and the cells of its pages. Units are pages."""

    slot: int
    base_gfn: int
    pages: int
    pgoff: int
    # The cells of both halves.
    private: Sequence[Cell]
    shared: Sequence[Cell]

    def cell(self, index: int, *, private: bool) -> Cell:
        """The cell of a page of the slot."""
        return (self.private if private else self.shared)[index]

    def gpa(self, index: int) -> int:
        """The gpa of a page of the slot, in bytes."""
        return (self.base_gfn + index) << PAGE_SHIFT


class World:
    """A VM under stress. Threads share it."""

    def __init__(self, shim: Client, fd: int) -> None:
        """*fd* is of a file of FILE_PAGES that no other process uses."""
        self.fd: Final = fd
        semantics = shim.query_semantics()
        # How many pages the file's slot maps: where ranges are exclusive, the other
        # half is for the windows.
        self._file_pages: Final = FILE_PAGES // (2 if semantics.exclusive else 1)
        self.handle: Final = shim.file(fd)
        # Whether files can be frozen; the granule of fallocate, in pages; and whether
        # pages that become shared in place are filled with zeros.
        self.freezes: Final = semantics.has_freeze
        self._granule: Final = 512 if semantics.by_huge_page else 1
        self._zeroes: Final = semantics.content == "zeroed"
        # The errnos of changes that may be refused.
        self.refusals: Final = tuple(
            number
            for number, refuses in (
                (errno.EPERM, self.freezes),
                # If the VM has the attributes, a conversion punches part of a granule.
                (errno.EINVAL, self._granule > 1),
                (errno.EAGAIN, semantics.pinned_punch == "refused"),
                (errno.EOPNOTSUPP, semantics.content == "refused"),
            )
            if refuses
        )
        # A thread that punched a page that it had locked would wait for itself.
        self._punches_faults: Final = not semantics.locks_pages
        # The point from which the frame of a removed page may be another page's. With
        # events before the removal there is none.
        self._forgets_at: Final = {
            "after": "invalidate:end",
            "bracket": "invalidate:begin",
        }.get(semantics.order)
        self.vm: Final = VM(shim, hooks=self._hook)
        # In place, a conversion changes no content that is not zeroed: of two halves
        # both stay.
        self.vmm: Final = Vmm(self.vm, discard=not self.vm.in_place)
        self.oracle: Final = Oracle()
        self.file: Final = self.oracle.cells("file page", FILE_PAGES)
        # As in a VMM: taken to change slots and to convert.
        self._lock: Final = threading.Lock()
        # Replaced as a whole, under _lock.
        self.windows: tuple[Window, ...] = ()
        self._next_gfn = _FIRST_WINDOW_GFN
        self._pauses: Final = itertools.cycle(_PAUSES)
        self._punches: Final = itertools.cycle([True] + [False] * _PUNCHED_FAULTS)
        # By gfn: the frame of a page that is being removed, and the change that removes
        # it.
        self._leaving: Final[dict[int, tuple[int, Change]]] = {}
        # By thread: the change, if the thread's last access used such a frame.
        self.used_leaving: Final[dict[int, Change]] = {}
        self.violations: Final[list[str]] = []
        # Tells the threads to end.
        self.stop: Final = threading.Event()

    def violation(self, text: str) -> None:
        """Record a violation, and stop all threads."""
        self.violations.append(text)
        self.stop.set()

    def _hook(self, point: str, start: int, end: int) -> None:
        if point == self._forgets_at:
            for gfn in [gfn for gfn in list(self._leaving) if start <= gfn < end]:
                self._leaving.pop(gfn, None)
        if point == "access":
            self._note_access(start)
        elif point == "invalidate:begin":
            time.sleep(next(self._pauses))
        elif (
            point == "fault:before_install"
            and self._punches_faults
            and next(self._punches)
        ):
            # The worst moment: the frame is known, and not yet mapped.
            for window in self.windows:
                if 0 <= start - window.base_gfn < window.pages:
                    self.punch(window, start - window.base_gfn, 1)

    def _note_access(self, gfn: int) -> None:
        # In guest mode: this takes no lock, and does not block.
        if (leaving := self._leaving.get(gfn)) is not None:
            frame, change = leaving
            spte = self.vm.spte(gfn)
            if spte is not None and spte.pfn == frame:
                self.used_leaving[threading.get_ident()] = change

    # --- slots ------------------------------------------------------------------------

    def add_window(self, slot: int, pages: int, pgoff: int) -> Window | None:
        """Make a slot at gfns that have not been used yet.

        None where ranges are exclusive and another window has some of the pages.
        """
        exclusive = self._file_pages < FILE_PAGES
        with self._lock:
            for each in self.windows if exclusive else ():
                if pgoff < each.pgoff + each.pages and each.pgoff < pgoff + pages:
                    return None
            base, self._next_gfn = self._next_gfn, self._next_gfn + _WINDOW_STRIDE
            return self._add(slot, base, pages, pgoff)

    def add_file(self) -> Window:
        """Make the slot that maps the file."""
        with self._lock:
            return self._add(0, 0, self._file_pages, 0)

    def _add(self, slot: int, base_gfn: int, pages: int, pgoff: int) -> Window:
        private = self.file[pgoff : pgoff + pages]
        shared = (
            private
            if self.vm.shared_in_file
            else self.oracle.cells(f"slot {slot} at {base_gfn:#x}, shared page", pages)
        )
        window = Window(slot, base_gfn, pages, pgoff, private, shared)
        self.vm.set_user_memory_region(
            slot,
            base_gfn << PAGE_SHIFT,
            pages << PAGE_SHIFT,
            private_fd=self.fd,
            private_offset=pgoff << PAGE_SHIFT,
            shared=mmap.mmap(-1, pages << PAGE_SHIFT),
            flags=KVM_MEM_PRIVATE,
        )
        # Convert all pages to private, as a confidential guest's VMM does. In place
        # they are private from the beginning.
        if not self.vm.in_place:
            size = pages << PAGE_SHIFT
            self.vm.set_memory_attributes(window.gpa(0), size, private=True)
        self.windows = (*self.windows, window)
        return window

    def remove_window(self, window: Window) -> None:
        """Delete a slot while others may use it."""
        with self._lock:
            self.windows = tuple(each for each in self.windows if each is not window)
            self.vm.set_user_memory_region(window.slot, 0, 0)

    # --- memory -----------------------------------------------------------------------

    def convert(self, window: Window, index: int, pages: int, *, private: bool) -> bool:
        """Convert pages of a slot; False if it was deleted.

        In place it may fail with EAGAIN: a fault has a reference.
        """
        with self._lock:
            if window not in self.windows:
                return False
            if self.vm.in_place:
                self._convert_in_place(window, index, pages, private=private)
                return True
            lost = (window.shared if private else window.private)[index:][:pages]
            with (
                suppress(Refused),
                self._clearing(window, index, lost),
                self._refusable(),
            ):
                self.vmm.convert(
                    window.gpa(index), pages << PAGE_SHIFT, private=private
                )
        return True

    def _convert_in_place(
        self, window: Window, index: int, pages: int, *, private: bool
    ) -> None:
        """Convert pages of the file. Content is lost only if they are zeroed.

        With the lock, so no other thread converts these pages: devices convert without
        it, but other pages.
        """
        first = window.base_gfn + index
        zeroes = (
            self._zeroes
            and not private
            and any(self.vm.is_private(gfn) for gfn in range(first, first + pages))
        )
        lost = window.private[index : index + pages] if zeroes else ()
        with (
            suppress(BlockingIOError, Refused),
            self._clearing(window, index, lost),
            self._refusable(),
        ):
            self.vmm.convert(window.gpa(index), pages << PAGE_SHIFT, private=private)

    def punch(self, window: Window, index: int, pages: int) -> None:
        """Punch pages of a window out of the file."""
        index, pages = self._whole(window, index, pages)
        if not pages:
            return
        offset = (window.pgoff + index) << PAGE_SHIFT
        cells = window.private[index : index + pages]
        with (
            suppress(Refused),
            self._clearing(window, index, cells),
            self._refusable(),
        ):
            fallocate(self.fd, PUNCH, offset, pages << PAGE_SHIFT)

    def _whole(self, window: Window, index: int, pages: int) -> tuple[int, int]:
        """The index and number of pages, widened to whole granules in the window.

        The number may be 0: a window may have only parts of huge pages.
        """
        size, begin = self._granule, window.pgoff
        first = max((begin + index) // size, -(-begin // size)) * size
        end = -(-(begin + index + pages) // size) * size
        end = min(end, (begin + window.pages) // size * size)
        return first - begin, max(end - first, 0)

    @contextmanager
    def _refusable(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno not in self.refusals:
                raise
            raise Refused from exc

    def allocate(self, window: Window, index: int, pages: int) -> None:
        """Allocate pages of a window."""
        index, pages = self._whole(window, index, pages)
        if not pages:
            return
        offset = (window.pgoff + index) << PAGE_SHIFT
        with suppress(Refused), self._refusable():
            fallocate(self.fd, FALLOC_FL_KEEP_SIZE, offset, pages << PAGE_SHIFT)

    def freeze(self, seconds: float) -> None:
        """Freeze the file for a while, unless another thread has frozen it."""
        try:
            self.handle.freeze()
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            return
        try:
            time.sleep(seconds)
        finally:
            self.handle.unfreeze()

    @contextmanager
    def _clearing(
        self, window: Window, index: int, cells: Sequence[Cell]
    ) -> Iterator[None]:
        first = window.base_gfn + index
        change = self.oracle.begin_clear(cells)
        leaving = {
            gfn: (spte.pfn, change)
            for gfn in range(first, first + len(cells))
            if (spte := self.vm.spte(gfn)) is not None
        }
        self._leaving.update(leaving)
        settle = self.oracle.end
        try:
            yield
        except Refused:
            settle = self.oracle.undo
            raise
        finally:
            settle(change, cells)
            for gfn in leaving:
                self._leaving.pop(gfn, None)
