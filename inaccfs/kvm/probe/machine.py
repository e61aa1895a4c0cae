"""The VM that a row uses: the calls of `protocol`, with outcomes in words."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from typing import TYPE_CHECKING, Final

from inaccfs import errnos, syscalls
from inaccfs.kvm.probe import words
from inaccfs.kvm.probe.guest import STARTED, OrPage, Read, Write
from inaccfs.kvm.probe.protocol import (
    U64,
    AbsentError,
    Halt,
    Hypercall,
    MmioRead,
    MmioWrite,
    PortIn,
    PortOut,
    Region,
)
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.kvmcalls import (
    CAPABILITIES,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inaccfs.kvm.probe.guest import Operation
    from inaccfs.kvm.probe.protocol import Exit, Kvm, Vcpu, Vm

LOW: Final = 0x10000
"""The size of slot 0, which begins at gpa 0 and holds the guest's code."""

T: Final = 0x100000
"""The gpa of slot 1, which most rows are about."""

PAGES: Final = 16
"""The size of slot 1 and of its file, unless a row says otherwise."""

SIZE: Final = PAGES * PAGE_SIZE
"""The same in bytes."""

END: Final = 1 << 64
"""The address after the last one that fits into an ioctl's struct."""

PATIENCE: Final = 5.0
"""For how many seconds a spinning guest may take to notice a change."""

# Stop running a guest after so many exits, as it may never halt.
_MOST_EXITS: Final = 12


class CannotBeginError(Exception):
    """A KVM refuses something that a row needs before it can ask."""


class HostMemory:
    """Anonymous memory, or a mapping of a file, for a slot's userspace_addr."""

    def __init__(self, pages: int, fill: int | None = None, fd: int = -1) -> None:
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.pages: Final = mmap.mmap(fd, pages * PAGE_SIZE, flags)
        self.size: Final = pages * PAGE_SIZE
        self.address: Final = ctypes.addressof(ctypes.c_char.from_buffer(self.pages))
        if fill is not None:
            self.pages[:] = bytes([fill]) * self.size

    def at(self, page: int = 0) -> str:
        """The first four bytes of a page, as they are in memory."""
        return self.pages[page * PAGE_SIZE : page * PAGE_SIZE + 4].hex()

    def put(self, data: bytes, page: int = 0) -> None:
        """Write at the beginning of a page."""
        self.pages[page * PAGE_SIZE : page * PAGE_SIZE + len(data)] = data

    def discard(self) -> None:
        """MADV_DONTNEED: the memory reads as zeros, or as the file, again."""
        self.pages.madvise(mmap.MADV_DONTNEED)

    def unmap(self, page: int, pages: int = 1) -> None:
        """munmap(2) a part, which the caller must not access any more."""
        _munmap(self.address + page * PAGE_SIZE, pages * PAGE_SIZE)


def _munmap(address: int, size: int) -> None:
    call = ctypes.CDLL(None, use_errno=True).munmap
    if call(ctypes.c_void_p(address), ctypes.c_size_t(size)):
        raise syscalls.last_error()


class Spinning:
    """A guest that runs in a separate thread."""

    def __init__(self, machine: Machine, program: Sequence[Operation]) -> None:
        self._started: Final = threading.Event()
        self._found: str | None = None
        vcpu = machine.vcpu
        vcpu.load(program)
        self._thread: Final = threading.Thread(
            target=self._go_on, args=(machine, vcpu), daemon=True
        )
        self._thread.start()
        self._started.wait(PATIENCE)

    def _go_on(self, machine: Machine, vcpu: Vcpu) -> None:
        try:
            self._found = machine.story(vcpu, bytes(8), self._started)
        except Exception as exc:
            self._found = f"{type(exc).__name__}: {exc}"
        self._started.set()

    def ended(self, seconds: float = PATIENCE) -> str:
        """The guest's exits in words, or "still running"."""
        self._thread.join(seconds)
        return "still running" if self._found is None else self._found


class Machine:
    """A VM with slot 0. Its vCPU is made when it is first used.

    All that a row has made ends with the row's process. Methods that return a text
    return the outcome in words; they do not raise `OSError`.
    """

    def __init__(self, kvm: Kvm, kind: int | None = None, *, low: bool = True) -> None:
        """*kind* is the VM's type; without *low* it has no slot and runs no guest."""
        self.kvm: Final = kvm
        self.vm: Final[Vm] = kvm.create_vm(kvm.vm_type if kind is None else kind)
        self._vcpu: Vcpu | None = None
        self._low: mmap.mmap | None = None
        self._keep: Final[list[HostMemory]] = []
        self._base = 0
        self._ended = False
        if low:
            self._low = self.anonymous(LOW // PAGE_SIZE).pages
            address = self._keep[-1].address
            must(self.region(0, 0, 0, LOW, address))

    def another(self, kind: int | None = None, *, low: bool = True) -> Machine:
        """Another VM of the same KVM."""
        return Machine(self.kvm, kind, low=low)

    # --- memory -----------------------------------------------------------------------

    def create(self, pages: int = PAGES, flags: int | None = None) -> int:
        """Make a guest_memfd for a slot; returns its descriptor."""
        flags = self.kvm.file_flags if flags is None else flags
        return self.vm.create_guest_memfd(pages * PAGE_SIZE, flags)

    def anonymous(self, pages: int = PAGES, fill: int | None = None) -> HostMemory:
        """Make memory of the VMM, in which each byte is *fill*."""
        self._keep.append(HostMemory(pages, fill))
        return self._keep[-1]

    def host_half(
        self, fd: int, pages: int = PAGES, fill: int | None = None
    ) -> HostMemory:
        """The memory for the userspace_addr of a slot with file *fd*.

        It is anonymous; or, where the file can be mapped, the file itself.
        """
        if self.kvm.file_flags & GUEST_MEMFD_FLAG_MMAP:
            self._keep.append(HostMemory(pages, None, fd))
            return self._keep[-1]
        return self.anonymous(pages, fill)

    def memory(
        self,
        pages: int = PAGES,
        gpa: int = T,
        slot: int = 1,
        fill: int | None = None,
        *,
        private: bool = True,
    ) -> tuple[int, HostMemory]:
        """Make a slot with a new file, and make its gfns private, if that is possible.

        Returns the file's descriptor and the memory at userspace_addr.
        """
        fd = self.create(pages)
        half = self.host_half(fd, pages, fill)
        must(self.region(slot, gpa=gpa, size=pages * PAGE_SIZE, at=half.address, fd=fd))
        if private and self.kvm.private:
            must(self.to_private(gpa, pages))
        return fd, half

    def closable(self) -> int:
        """Make a slot whose file no mapping keeps open; returns the file's only fd."""
        fd = self.create()
        self.region(fd=fd, at=self.anonymous(fill=0x22).address)
        if self.kvm.private:
            self.to_private(T, PAGES)
        return fd

    def plain(self, gpa: int = T, slot: int = 1) -> HostMemory:
        """Make a slot without a file, whose bytes are 0x33."""
        half = self.anonymous(fill=0x33)
        must(self.region(slot, 0, gpa, PAGES * PAGE_SIZE, half.address))
        return half

    # --- ioctls -----------------------------------------------------------------------

    def region(
        self,
        slot: int = 1,
        flags: int = KVM_MEM_GUEST_MEMFD,
        gpa: int = T,
        size: int = PAGES * PAGE_SIZE,
        at: int = 0,
        offset: int = 0,
        fd: int = 0,
        padding: int = 0,
    ) -> str:
        """KVM_SET_USER_MEMORY_REGION2."""
        region = Region(slot, flags, gpa, size, at, offset, fd, padding)
        return words.of(self.vm.set_user_memory_region2, region)

    def delete(self, slot: int = 1) -> str:
        """Delete a slot."""
        return self.region(slot, 0, size=0)

    def old_region(self, slot: int, flags: int, gpa: int, size: int, at: int) -> str:
        """KVM_SET_USER_MEMORY_REGION."""
        return words.of(
            self.vm.set_user_memory_region, Region(slot, flags, gpa, size, at)
        )

    def attributes(self, gpa: int, size: int, attributes: int, flags: int = 0) -> str:
        """KVM_SET_MEMORY_ATTRIBUTES."""
        return words.of(
            self.vm.set_memory_attributes, gpa & U64, size & U64, attributes, flags
        )

    def to_private(self, gpa: int = T, pages: int = 1) -> str:
        """Make pages private."""
        return self.attributes(gpa, pages * PAGE_SIZE, KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def to_private_if_possible(self, gpa: int, pages: int) -> Iterator[str]:
        """Make pages private, where gfns can be private: the outcome, or nothing."""
        if self.kvm.private:
            yield self.to_private(gpa, pages)

    def to_shared(self, gpa: int = T, pages: int = 1) -> str:
        """Make pages shared."""
        return self.attributes(gpa, pages * PAGE_SIZE, 0)

    def pre_fault(self, gpa: int = T, size: int = PAGE_SIZE, flags: int = 0) -> str:
        """KVM_PRE_FAULT_MEMORY: the outcome, and the rest that the struct has then."""
        if not self.vm.check_extension(CAPABILITIES["KVM_CAP_PRE_FAULT_MEMORY"]):
            raise AbsentError("KVM_PRE_FAULT_MEMORY")
        number, gpa, size = self.vcpu.pre_fault_memory(gpa, size, flags)
        outcome = errnos.name(number) if number else "ok"
        return f"{outcome} left {gpa:#x} {size:#x}"

    # --- the file ---------------------------------------------------------------------

    def allocate(self, fd: int, page: int = 0, pages: int = 1) -> str:
        """fallocate(2), KEEP_SIZE."""
        return self.fallocate(fd, syscalls.FALLOC_FL_KEEP_SIZE, page, pages)

    def punch(self, fd: int, page: int = 0, pages: int = 1) -> str:
        """fallocate(2), PUNCH_HOLE."""
        return self.fallocate(fd, syscalls.PUNCH, page, pages)

    @staticmethod
    def fallocate(fd: int, mode: int, page: int, pages: int) -> str:
        """fallocate(2) of whole pages."""
        return words.of(
            syscalls.fallocate, fd, mode, page * PAGE_SIZE, pages * PAGE_SIZE
        )

    def cached(self, fd: int) -> str:
        """How many allocated pages the file has."""
        return f"{self.kvm.cached(fd)} cached"

    @staticmethod
    def close(fd: int) -> str:
        """close(2)."""
        return words.of(os.close, fd)

    # --- the guest --------------------------------------------------------------------

    @property
    def vcpu(self) -> Vcpu:
        """The first vCPU, which is made when it is first used."""
        if self._vcpu is None:
            if self._low is None:
                raise RuntimeError("a machine without slot 0 runs no guest")
            self._vcpu = self.vm.create_vcpu(self._low)
            # Map what the guest itself needs, so that `mapped` does not count it.
            must(self.run(), "done")
            self._base = self.vm.stat("pages_4k")
        return self._vcpu

    def run(self, *program: Operation, answer: int = 0x5A) -> str:
        """Run a program to its end, or to an exit that ends it.

        Each byte that it reads from a device is *answer*.
        """
        vcpu = self.vcpu
        vcpu.load(program)
        return self.story(vcpu, bytes([answer]) * 8)

    def resume(self, answer: int = 0x5A) -> str:
        """KVM_RUN again, for a guest that has not completed its program."""
        if self._ended:
            return "it has ended"
        return self.story(self.vcpu, bytes([answer]) * 8)

    def read(self, gpa: int = T, width: int = 4) -> str:
        """The value that the guest reads."""
        return self.run(Read(gpa, width))

    def write(self, gpa: int = T, value: int = 0x77, width: int = 4) -> str:
        """The guest writes: "done", or an exit."""
        return self.run(Write(gpa, value, width))

    def or_page(self, gpa: int) -> str:
        """All words of a page, or-ed by the guest."""
        return self.run(OrPage(gpa))

    def write_code(self, gpa: int, *program: Operation) -> str:
        """The guest writes machine code of *program* at *gpa*, to jump there."""
        code = self.vcpu.code(program)
        return self.run(
            *(
                Write(gpa + at, int.from_bytes(code[at : at + 4], "little"))
                for at in range(0, len(code), 4)
            )
        )

    def spin(self, *program: Operation) -> Spinning:
        """Run the guest in a thread, which ends with the row's process."""
        return Spinning(self, program)

    def mapped(self) -> str:
        """How many pages of 4 KiB the guest has mapped, without its code and tables."""
        self.vcpu  # noqa: B018 - sets the base
        return f"{self.vm.stat('pages_4k') - self._base} mapped"

    def story(
        self, vcpu: Vcpu, answer: bytes, started: threading.Event | None = None
    ) -> str:
        """KVM_RUN until the guest ends or cannot go on: all exits in words."""
        seen: list[str] = []
        for _ in range(_MOST_EXITS):
            found = vcpu.run()
            self._ended = isinstance(found, Halt)
            if self._ended:
                return ", ".join(seen) or "done"
            if isinstance(found, PortOut) and found.port == STARTED:
                if started is not None:
                    started.set()
                continue
            seen.append(words.of_exit(found))
            if not self._goes_on(vcpu, found, answer):
                return ", ".join(seen)
        return ", ".join([*seen, "and so on"])

    @staticmethod
    def _goes_on(vcpu: Vcpu, found: Exit, answer: bytes) -> bool:
        match found:
            case PortIn(_, width) | MmioRead(_, width):
                vcpu.answer(answer[:width])
            case Hypercall():
                vcpu.answer(bytes(8))
            case PortOut() | MmioWrite():
                pass
            case _:
                return False
        return True


def must(outcome: str, wanted: str = "ok") -> None:
    """Raise `CannotBeginError` unless *outcome* is what a row needs to begin."""
    if outcome != wanted:
        raise CannotBeginError(f"cannot begin: {outcome}")
