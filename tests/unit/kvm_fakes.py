"""A shim without a daemon: files of real memory, frames that are made up.

Everything happens in the thread that calls: a punch calls the callbacks, as the daemon
would have the client do, and returns when they have.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.kvm import KVM_MEM_PRIVATE, VM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.kvm.memory import WritableBuffer
    from inaccfs.kvm.uapi import Hook

    Callback = Callable[[int, int], object]

PAGE: Final = 4096
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# How long a test waits that fails.
PATIENCE: Final = 10.0

# Each allocation has frames far from the last, and congruent to the file's pages.
_APART: Final = 1 << 24


class Pfn(NamedTuple):
    pfn: int
    order: int


@dataclass(frozen=True)
class Extent:
    offset: int
    pfn: int
    count: int
    order: int
    ino: int


class Pins(NamedTuple):
    extents: list[Extent]


@dataclass(frozen=True)
class Semantics:
    events: tuple[str, ...] = ("INVALIDATE",)
    unit: str = "pages"
    scope: str = "file"
    references: str = "counted"


BRACKETED: Final = Semantics(("INVALIDATE_START", "INVALIDATE_END", "MEMORY_ERROR"))


@dataclass(frozen=True)
class FileInfo:
    ino: int
    page_size: int


@dataclass(eq=False)
class FakeNotifier:
    file: FakeMemfd
    invalidate: Callback | None
    start: Callback | None
    end: Callback | None
    error: Callback | None
    # A daemon may disconnect it.
    registered: bool = True

    def unregister(self) -> None:
        self.file.notifiers.remove(self)


class FakeMemfd:
    """A file of the mount; what `FakeShim.file` gives is another handle of it."""

    def __init__(self, shim: FakeShim, size: int, order: int) -> None:
        self.shim: Final = shim
        self.fd: Final = os.memfd_create("fake")
        os.ftruncate(self.fd, size)
        self.ino: Final = os.fstat(self.fd).st_ino
        self.order = order
        # By page: the frame of what is allocated.
        self.frames: dict[int, int] = {}
        # By frame: how many references are held.
        self.references: Counter[int] = Counter()
        self.notifiers: list[FakeNotifier] = []
        # What has been bound.
        self.bound: list[tuple[int, int]] = []
        self.handles = 0
        # What get_pfn raises next.
        self.fails: list[OSError] = []

    @property
    def pages(self) -> int:
        return -(-os.fstat(self.fd).st_size // PAGE)

    def frame(self, page: int) -> int:
        """The page's frame; allocates its folio."""
        if page not in self.frames:
            folio = 1 << self.order
            first = page & -folio
            self.shim.frame += _APART
            for each in range(first, min(first + folio, self.pages)):
                self.frames.setdefault(each, self.shim.frame + each)
        return self.frames[page]

    def remove(self, start: int, end: int) -> None:
        """Take the pages away, and tell nobody."""
        for page in range(start, end):
            self.frames.pop(page, None)
        # A memfd is punched as a tmpfs is; zeros do for what these tests look at.
        os.pwrite(self.fd, bytes((end - start) * PAGE), start * PAGE)

    def punch(self, start: int, end: int) -> None:
        """Punch a hole in the order of the shim's semantics."""
        if "INVALIDATE_START" in self.shim.semantics.events:
            self.tell_start(start, end)
            self.remove(start, end)
            self.tell_end(start, end)
        else:
            self.remove(start, end)
            self.tell(start, end)

    def tell(self, start: int, end: int) -> None:
        unit = PAGE if self.shim.semantics.unit == "bytes" else 1
        for each in list(self.notifiers):
            assert each.invalidate is not None
            each.invalidate(start * unit, end * unit)

    def tell_start(self, start: int, end: int) -> None:
        for each in list(self.notifiers):
            assert each.start is not None
            each.start(start, end)

    def tell_end(self, start: int, end: int) -> None:
        for each in list(self.notifiers):
            assert each.end is not None
            each.end(start, end)

    def tell_error(self, start: int, end: int) -> None:
        for each in list(self.notifiers):
            assert each.error is not None
            each.error(start, end)


class FakeFile:
    """What `inaccfs.client.File` is to the client."""

    def __init__(self, memfd: FakeMemfd) -> None:
        self._memfd: Final = memfd
        self._closed = False
        memfd.handles += 1

    def get_pfn(self, offset: int) -> Pfn:
        self._check(offset, 1)
        if self._memfd.fails:
            raise self._memfd.fails.pop(0)
        pfn = self._memfd.frame(offset)
        self._memfd.references[pfn] += 1
        return Pfn(pfn, self._memfd.order)

    def get_pfns(self, offset: int, count: int) -> list[Extent]:
        self._check(offset, count)
        found: list[Extent] = []
        for page in range(offset, offset + count):
            pfn = self._memfd.frame(page)
            self._memfd.references[pfn] += 1
            if found and found[-1].pfn + found[-1].count == pfn:
                found[-1] = replace(found[-1], count=found[-1].count + 1)
            else:
                order, ino = self._memfd.order, self._memfd.ino
                found.append(Extent(page, pfn, 1, order, ino))
        return found

    def _check(self, offset: int, count: int) -> None:
        assert not self._closed, "a file that was closed is used"
        if offset + count > self._memfd.pages:
            raise OSError(errno.EINVAL, "past the end")

    def put_pfn(self, pfn: int, count: int = 1, *, wait: bool = True) -> None:
        for each in range(pfn, pfn + count):
            assert self._memfd.references[each] > 0, "put without get"
            self._memfd.references[each] -= 1

    def get_memory(self) -> int:
        if self._memfd.shim.refuses_memory:
            raise PermissionError(errno.EPERM, "--no-guest-access")
        return os.dup(self._memfd.fd)

    def query(self) -> FileInfo:
        return FileInfo(self._memfd.ino, PAGE)

    def register_notifier(
        self,
        invalidate: Callback | None = None,
        *,
        invalidate_start: Callback | None = None,
        invalidate_end: Callback | None = None,
        error: Callback | None = None,
    ) -> FakeNotifier:
        made = FakeNotifier(
            self._memfd, invalidate, invalidate_start, invalidate_end, error
        )
        self._memfd.notifiers.append(made)
        return made

    def bind(
        self,
        start: int,
        end: int,
        invalidate: Callback | None = None,
        *,
        invalidate_start: Callback | None = None,
        invalidate_end: Callback | None = None,
        error: Callback | None = None,
    ) -> FakeNotifier:
        assert self._memfd.shim.semantics.scope == "range"
        made = self.register_notifier(
            invalidate,
            invalidate_start=invalidate_start,
            invalidate_end=invalidate_end,
            error=error,
        )
        self._memfd.bound.append((start, end))
        return made

    def close(self) -> None:
        assert not self._closed
        self._closed = True
        self._memfd.handles -= 1


@dataclass
class FakeShim:
    """What `inaccfs.client.Client` is to a VM."""

    semantics: Semantics = field(default_factory=Semantics)
    refuses_memory: bool = False
    # The frame that was given out last, more or less.
    frame: int = 0
    files: list[FakeMemfd] = field(default_factory=list)

    def memfd(self, size: int = MIB, order: int = 0) -> FakeMemfd:
        """Make a file of folios of 2**order pages."""
        made = FakeMemfd(self, size, order)
        self.files.append(made)
        return made

    def file(self, file: int, /) -> FakeFile:
        ino = os.fstat(file).st_ino
        for each in self.files:
            if each.ino == ino:
                return FakeFile(each)
        raise OSError(errno.EINVAL, "the fd is no file of this mount")

    def query_semantics(self) -> Semantics:
        return self.semantics

    def query_pins(self) -> Pins:
        return Pins(
            [
                Extent(page, pfn, 1, file.order, file.ino)
                for file in self.files
                for page, pfn in file.frames.items()
            ]
        )

    def close(self) -> None:
        """All that was given has been given back."""
        for each in self.files:
            os.close(each.fd)
            assert not +each.references, "references leak"
            assert (each.notifiers, each.handles) == ([], 0)


@contextmanager
def shim(
    semantics: Semantics | None = None, *, refuses_memory: bool = False
) -> Iterator[FakeShim]:
    """A shim; at the end it is asserted that nothing of it is held any more."""
    made = FakeShim(semantics or Semantics(), refuses_memory)
    yield made
    made.close()


def add_slot(
    vm: VM,
    file: FakeMemfd,
    *,
    slot: int = 0,
    gpa: int = 0,
    size: int | None = None,
    private_offset: int = 0,
    shared: WritableBuffer | None = None,
) -> None:
    """A slot with a private half: all of *file*, unless told otherwise."""
    vm.set_user_memory_region(
        slot=slot,
        guest_phys_addr=gpa,
        memory_size=file.pages * PAGE if size is None else size,
        private_fd=file.fd,
        private_offset=private_offset,
        shared=shared,
        flags=KVM_MEM_PRIVATE,
    )


@dataclass
class Guest:
    """A VM with one slot over one file."""

    shim: FakeShim
    vm: VM
    file: FakeMemfd
    shared: bytearray


@contextmanager
def guest(
    size: int = MIB,
    order: int = 0,
    *,
    semantics: Semantics | None = None,
    hooks: Hook | None = None,
    default_private: bool = True,
) -> Iterator[Guest]:
    """A guest whose memory is *size* bytes, in folios of 2**order pages."""
    with shim(semantics) as made:
        file, shared = made.memfd(size, order), bytearray(size)
        with VM(made, hooks=hooks, default_private=default_private) as vm:
            add_slot(vm, file, shared=shared)
            yield Guest(made, vm, file, shared)
