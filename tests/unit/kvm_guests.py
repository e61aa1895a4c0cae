"""VMs over the real shim in this process, whose calls a test can make fail."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from inaccfs.inprocess import Mount
from inaccfs.kvm import KVM_MEM_PRIVATE, VM
from inaccfs.semantics import V8, V10
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.syscalls import PUNCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Unpack

    from inaccfs.inprocess import Client, File, Notifier
    from inaccfs.inprocess.client import FileInfo, Pins
    from inaccfs.inprocess.pages import Got
    from inaccfs.kvm.memory import WritableBuffer
    from inaccfs.kvm.shim import ShimCallbacks
    from inaccfs.kvm.uapi import Hook
    from inaccfs.semantics import Semantics
    from inaccfs.shim.file import InaccessibleFile

    Callback = Callable[..., object]

PAGE: Final = 4096
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# How long a test waits before it fails.
PATIENCE: Final = 60.0

BRACKETED: Final = V10()


class Memfd:
    """A file of the mount, with the failures that a test wants, and its state."""

    def __init__(self, shim: FaultyShim, size: int) -> None:
        self.shim: Final = shim
        self.fd: Final = shim.mount.memfd_create("guest", size)
        self._inode: Final = shim.mount.inode(self.fd)
        # What get_pfn raises next.
        self.fails: list[OSError] = []
        # What query raises.
        self.query_fails: OSError | None = None
        # The order that get_pfn returns, if it is not the true one.
        self.order: int | None = None
        # Whether callbacks are not called, though the shim thinks so.
        self.silent = False
        # Whether the daemon has disconnected the notifiers, so events are not sent.
        self.lost = False

    # --- system calls -----------------------------------------------------------------

    def truncate(self, size: int) -> None:
        self.shim.mount.ftruncate(self.fd, size)

    def allocate(self, offset: int, length: int, mode: int = 0) -> None:
        self.shim.mount.fallocate(self.fd, mode, offset, length)

    def punch(self, start: int, end: int) -> None:
        self.allocate(start * PAGE, (end - start) * PAGE, PUNCH)

    def remove(self, start: int, end: int) -> None:
        """Punch without an event."""
        self.silent = True
        self.punch(start, end)
        self.silent = False

    @contextmanager
    def punching(self, start: int, end: int) -> Iterator[None]:
        """Punch: the start has been sent; the block's end removes the pages."""
        arrived, go = threading.Event(), threading.Event()

        def gate() -> None:
            arrived.set()
            assert go.wait(PATIENCE)

        self.shim.gate = gate
        thread = threading.Thread(target=self.punch, args=(start, end))
        thread.start()
        try:
            assert arrived.wait(PATIENCE)
            yield
        finally:
            self.shim.gate = None
            go.set()
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def poison(self, page: int) -> None:
        file = self.shim.client.file(self.fd)
        file.memory_failure(page)
        file.close()

    # --- looking ----------------------------------------------------------------------

    @property
    def pages(self) -> int:
        return -(-os.fstat(self.fd).st_size // PAGE)

    @property
    def frames(self) -> dict[int, int]:
        """The frames of the fetched pages, by page."""
        memory = self._inode.pages.memory
        return {
            extent.offset + at: extent.pfn + at
            for extent in ([] if memory is None else memory.frames.extents())
            for at in range(extent.count)
        }

    @property
    def references(self) -> int:
        memory = self._inode.pages.memory
        return 0 if memory is None else memory.references_count

    @property
    def notifiers(self) -> int:
        return len(self._inode.notifiers)

    @property
    def handles(self) -> int:
        """How many handles of the file are open."""
        return sum(file.inode is self._inode for file in self.shim.client.files)

    def fetch(self, page: int) -> int:
        """Fetch a page; return its frame. Nothing is referenced."""
        file = self.shim.client.file(self.fd)
        pfn = file.get_pfn(page).pfn
        file.put_pfn(pfn)
        file.close()
        return pfn

    def is_of(self, inode: InaccessibleFile) -> bool:
        return self._inode is inode


class FaultyFile:
    """`inaccfs.inprocess.File`, with the failures that a test wants."""

    def __init__(self, memfd: Memfd, file: File) -> None:
        self._memfd: Final = memfd
        self._file: Final = file
        self.get_memory: Final = file.get_memory
        self.put_pfn: Final = file.put_pfn
        self.put_pfns: Final = file.put_pfns
        self.close: Final = file.close
        self.set_memory_attributes: Final = file.set_memory_attributes
        self.query_memory_attribute: Final = file.query_memory_attribute
        self.populate: Final = file.populate
        self.pin_pages: Final = file.pin_pages
        self.unpin_pages: Final = file.unpin_pages

    def query(self) -> FileInfo:
        if self._memfd.query_fails is not None:
            raise self._memfd.query_fails
        return self._file.query()

    def get_pfn(self, offset: int) -> Got:
        return self.get_pfns(offset, 1)[0]

    def get_pfns(self, offset: int, count: int) -> list[Got]:
        if self._memfd.fails:
            raise self._memfd.fails.pop(0)
        found = [*self._file.get_pfns(offset, count)]
        if (order := self._memfd.order) is not None:
            found = [each._replace(order=order) for each in found]
        return found

    def register_notifier(
        self, invalidate: Callback | None = None, **callbacks: Unpack[ShimCallbacks]
    ) -> FaultyNotifier:
        made = self._file.register_notifier(
            self._heard(invalidate), **self._all_heard(callbacks)
        )
        return FaultyNotifier(self._memfd, made)

    def bind(
        self,
        start: int,
        end: int,
        invalidate: Callback | None = None,
        **callbacks: Unpack[ShimCallbacks],
    ) -> FaultyNotifier:
        made = self._file.bind(
            start, end, self._heard(invalidate), **self._all_heard(callbacks)
        )
        return FaultyNotifier(self._memfd, made)

    def _all_heard(self, callbacks: ShimCallbacks) -> ShimCallbacks:
        return {
            "invalidate_start": self._heard(callbacks.get("invalidate_start")),
            "invalidate_end": self._heard(callbacks.get("invalidate_end")),
            "error": self._heard(callbacks.get("error")),
            "with_kinds": callbacks.get("with_kinds", False),
            "with_frames": callbacks.get("with_frames", False),
        }

    def _heard(self, callback: Callback | None) -> Callback | None:
        if callback is None:
            return None

        def heard(start: int, end: int, *more: object) -> None:
            if not (self._memfd.silent or self._memfd.lost):
                callback(start, end, *more)

        return heard


class FaultyNotifier:
    """`inaccfs.inprocess.Notifier`, which may be lost."""

    def __init__(self, memfd: Memfd, notifier: Notifier) -> None:
        self._memfd: Final = memfd
        self._notifier: Final = notifier
        self.unregister: Final = notifier.unregister

    @property
    def registered(self) -> bool:
        return self._notifier.registered and not self._memfd.lost


class FaultyShim:
    """A mount in this process and a client, with the failures that a test wants."""

    def __init__(self, semantics: Semantics, order: int, *, guest_access: bool) -> None:
        """Folios have up to 2**order pages."""
        # Called before pages are removed, if the event comes first.
        self.gate: Callable[[], None] | None = None
        self.mount: Final = Mount(
            semantics,
            memory=SimulatedMemory(order=order),
            guest_access=guest_access,
            on_change=self._pass_gate if semantics.order == "bracket" else None,
        )
        self.client: Final[Client] = self.mount.connect()
        self.fallocate: Final = self.mount.fallocate
        self._files: Final[list[Memfd]] = []

    def _pass_gate(self, fd: int, offset: int, length: int) -> None:
        if self.gate is not None:
            self.gate()

    def memfd(self, size: int = MIB) -> Memfd:
        made = Memfd(self, size)
        self._files.append(made)
        return made

    def file(self, file: int, /) -> FaultyFile:
        real = self.client.file(file)
        (memfd,) = (each for each in self._files if each.is_of(real.inode))
        return FaultyFile(memfd, real)

    def query_semantics(self) -> Semantics:
        return self.mount.semantics

    def query_pins(self) -> Pins:
        return self.client.query_pins()

    def close(self) -> None:
        """Assert that all references and notifiers have been given back."""
        for each in self._files:
            os.close(each.fd)
            assert not each.references, "references leak"
            assert (each.notifiers, each.handles) == (0, 0)
        self.client.close()
        self.mount.close()


@contextmanager
def shim(
    semantics: Semantics | None = None, *, order: int = 0, refuses_memory: bool = False
) -> Iterator[FaultyShim]:
    """A shim; at the end it must have no references and no notifiers."""
    made = FaultyShim(semantics or V8(), order, guest_access=not refuses_memory)
    yield made
    made.close()


def add_slot(
    vm: VM,
    file: Memfd,
    *,
    slot: int = 0,
    gpa: int = 0,
    size: int | None = None,
    private_offset: int = 0,
    shared: WritableBuffer | None = None,
) -> None:
    """A slot with a private half: by default all of *file*."""
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

    shim: FaultyShim
    vm: VM
    file: Memfd
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
    with shim(semantics, order=order) as made:
        file, shared = made.memfd(size), bytearray(size)
        with VM(made, hooks=hooks, default_private=default_private) as vm:
            add_slot(vm, file, shared=shared)
            yield Guest(made, vm, file, shared)


def to_shared(vm: VM) -> Callable[[int, int], None]:
    """The conversion of a gpa and a size, in bytes, to shared memory."""
    return lambda gpa, size: vm.set_memory_attributes(gpa, size, private=False)


class Once:
    """A hook that does something at a point, only the first time.

    It does so in the thread that faults, so each race has the same order in every run.
    """

    def __init__(self, point: str) -> None:
        self.point = point
        self.act: Callable[[], object] | None = None
        # All points that were passed, with their gfns.
        self.seen: list[tuple[str, int, int]] = []

    def __call__(self, point: str, start: int, end: int) -> None:
        self.seen.append((point, start, end))
        if point == self.point and self.act is not None:
            act, self.act = self.act, None
            act()
