"""A vCPU of a real KVM: its registers, its code, and its exits."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe import assembler
from inaccfs.kvm.probe.guest import END
from inaccfs.kvm.probe.protocol import (
    Halt,
    Hypercall,
    MemoryFault,
    MmioRead,
    MmioWrite,
    OtherExit,
    PortIn,
    PortOut,
)
from inaccfs.kvmcalls import (
    EXIT_NAMES,
    KVM_EXIT_HLT,
    KVM_EXIT_HYPERCALL,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_IO,
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_MMIO,
    KVM_GET_SREGS,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_VCPU_MMAP_SIZE,
    KVM_PRE_FAULT_MEMORY,
    KVM_RUN,
    KVM_SET_CPUID2,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    ioctl,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.kvm.probe.assembler import Mode
    from inaccfs.kvm.probe.guest import Operation
    from inaccfs.kvm.probe.protocol import Exit

# Addresses in slot 0: the code, and in long mode the page tables.
_CODE: Final = 0x1000
_PML4: Final = 0x2000
_PDPT: Final = 0x3000
_DIRECTORY: Final = 0x4000
_STACK: Final = 0x8000

# Offsets in struct kvm_run.
_IMMEDIATE_EXIT: Final = 1
_EXIT_REASON: Final = 8
_EXIT: Final = 32
# An exit_reason that KVM never sets, to see whether KVM_RUN has set one.
_NONE: Final = 0xDEAD

# Offsets in struct kvm_sregs: cs, ds, es, fs, gs, ss have 24 bytes each; cr0 to cr4
# and efer come after the tables' registers.
_SEGMENTS: Final = 6
_SEGMENT_SIZE: Final = 24
_CR0: Final = 224
_EFER: Final = 264
_SREGS_SIZE: Final = 312
# struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl,
# unusable, padding
_segment = struct.Struct("=QIH10B")
# cr0, cr2, cr3, cr4
_control = struct.Struct("=4Q")
# struct kvm_regs: rax to rdx, rsi, rdi, rsp, rbp, r8 to r15, rip, rflags
_regs = struct.Struct("=18Q")
# struct kvm_pre_fault_memory: gpa, size, flags, padding[5]
_pre_fault = struct.Struct("=QQQ40x")
# kvm_run.io: direction, size, port, count, data_offset
_run_io = struct.Struct("=BBHIQ")
# kvm_run.mmio: phys_addr, data[8], len, is_write
_run_mmio = struct.Struct("=Q8sIB")
# kvm_run.memory_fault: flags, gpa, size
_run_fault = struct.Struct("=QQQ")
# kvm_run.hypercall: nr, args[6], ret
_run_hypercall = struct.Struct("=7Q")
_HYPERCALL_RET: Final = _EXIT + _run_hypercall.size

# PE, ET, NE, PG and PAE, LME, LMA
_LONG_CR0: Final = 0x80000031
_LONG_CR4: Final = 1 << 5
_LONG_EFER: Final = 0x500
_CODE_TYPE: Final = 11
_DATA_TYPE: Final = 3
# Bit 1 is always set; IOPL 3 lets CPL 3 use ports.
_RFLAGS: Final = 2
_IOPL_3: Final = 3 << 12
# Present, writable, user, accessed, and dirty; of 2 MiB.
_TABLE: Final = 0x67
_LARGE_PAGE: Final = 0xE7


class RealVcpu:
    """A vCPU, ready to run a program."""

    def __init__(self, kvm: int, fd: int, low: mmap.mmap, mode: Mode) -> None:
        """*kvm* is the descriptor of /dev/kvm, *low* the memory of slot 0."""
        self._fd: Final = fd
        self._low: Final = low
        self._mode: Final = mode
        self._run: Final = mmap.mmap(fd, fcntl.ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0))
        # The offset in kvm_run at which the answer to the last exit belongs.
        self._answer = 0
        self._sregs: Final = bytearray(_SREGS_SIZE)
        ioctl(fd, KVM_GET_SREGS, self._sregs)
        if mode.long:
            _set_cpuid(kvm, fd)
            self._enter_long_mode()
        else:
            self._widen_segments()

    def close(self) -> None:
        """Close its descriptor and kvm_run."""
        self._run.close()
        os.close(self._fd)

    def load(self, program: Sequence[Operation]) -> None:
        self._complete()
        code = self.code(program)
        self._low[_CODE : _CODE + len(code)] = code
        flags = _RFLAGS | _IOPL_3 if self._mode.user else _RFLAGS
        ioctl(self._fd, KVM_SET_SREGS, bytes(self._sregs))
        registers = [0] * 6 + [_STACK] + [0] * 9 + [_CODE, flags]
        ioctl(self._fd, KVM_SET_REGS, _regs.pack(*registers))

    def _complete(self) -> None:
        """Let KVM complete the instruction of the last exit.

        Otherwise it would do so at the next KVM_RUN, and skip an instruction of another
        program that begins at the same address. See immediate_exit in api.rst.
        """
        self._run[_IMMEDIATE_EXIT] = 1
        with suppress(InterruptedError):
            fcntl.ioctl(self._fd, KVM_RUN, 0)
        self._run[_IMMEDIATE_EXIT] = 0

    def code(self, program: Sequence[Operation]) -> bytes:
        return assembler.assemble(program, self._mode)

    def run(self) -> Exit:
        struct.pack_into("=I", self._run, _EXIT_REASON, _NONE)
        number = 0
        try:
            fcntl.ioctl(self._fd, KVM_RUN, 0)
        except OSError as exc:
            number = exc.errno or 0
        (reason,) = struct.unpack_from("=I", self._run, _EXIT_REASON)
        if reason == KVM_EXIT_MEMORY_FAULT:
            return MemoryFault(number, *_run_fault.unpack_from(self._run, _EXIT))
        if number:
            return OtherExit(number, _name(reason))
        return self._found(reason)

    def answer(self, data: bytes) -> None:
        self._run[self._answer : self._answer + len(data)] = data

    def pre_fault_memory(self, gpa: int, size: int, flags: int) -> tuple[int, int, int]:
        request = bytearray(_pre_fault.pack(gpa, size, flags))
        number = 0
        try:
            ioctl(self._fd, KVM_PRE_FAULT_MEMORY, request)
        except OSError as exc:
            number = exc.errno or 0
        gpa, size, _ = _pre_fault.unpack(request)
        return number, gpa, size

    # --- exits ------------------------------------------------------------------------

    def _found(self, reason: int) -> Exit:
        if reason == KVM_EXIT_HLT:
            return Halt()
        if reason == KVM_EXIT_IO:
            return self._io()
        if reason == KVM_EXIT_MMIO:
            gpa, data, width, is_write = _run_mmio.unpack_from(self._run, _EXIT)
            self._answer = _EXIT + 8
            return MmioWrite(gpa, data[:width]) if is_write else MmioRead(gpa, width)
        if reason == KVM_EXIT_HYPERCALL:
            number, *arguments = _run_hypercall.unpack_from(self._run, _EXIT)
            self._answer = _HYPERCALL_RET
            return Hypercall(number, tuple(arguments[:3]))
        if reason == KVM_EXIT_INTERNAL_ERROR:
            (suberror,) = struct.unpack_from("=I", self._run, _EXIT)
            return OtherExit(0, f"{_name(reason)} {suberror}")
        return OtherExit(0, _name(reason))

    def _io(self) -> Exit:
        is_out, width, port, count, offset = _run_io.unpack_from(self._run, _EXIT)
        self._answer = offset
        if not is_out:
            return PortIn(port, width * count)
        if port == END and self._mode.user:
            return Halt()
        return PortOut(port, self._run[offset : offset + width * count])

    # --- modes ------------------------------------------------------------------------

    def _widen_segments(self) -> None:
        """Set up real mode with segments that begin at 0 and end at 4 GiB."""
        for index in range(_SEGMENTS):
            at = index * _SEGMENT_SIZE
            *_, access, present, dpl, db, s, _l, _g, avl, unusable, padding = (
                _segment.unpack_from(self._sregs, at)
            )
            _segment.pack_into(
                self._sregs,
                at,
                0,
                0xFFFFFFFF,
                0,
                access,
                present,
                dpl,
                db,
                s,
                0,
                1,
                avl,
                unusable,
                padding,
            )

    def _enter_long_mode(self) -> None:
        """Set up long mode with flat segments; the page table maps 1 GiB one to one."""
        user = self._mode.user
        dpl = 3 if user else 0
        for index in range(_SEGMENTS):
            code = index == 0
            _segment.pack_into(
                self._sregs,
                index * _SEGMENT_SIZE,
                0,
                0xFFFFFFFF,
                (8 if code else 16) | dpl,
                _CODE_TYPE if code else _DATA_TYPE,
                1,
                dpl,
                int(not code),
                1,
                int(code),
                1,
                0,
                0,
                0,
            )
        _control.pack_into(self._sregs, _CR0, _LONG_CR0, 0, _PML4, _LONG_CR4)
        struct.pack_into("=Q", self._sregs, _EFER, _LONG_EFER)
        struct.pack_into("=Q", self._low, _PML4, _PDPT | _TABLE)
        struct.pack_into("=Q", self._low, _PDPT, _DIRECTORY | _TABLE)
        large = (index << 21 | _LARGE_PAGE for index in range(512))
        struct.pack_into("=512Q", self._low, _DIRECTORY, *large)


def _name(reason: int) -> str:
    return EXIT_NAMES.get(reason, f"exit_reason {reason}")


def _set_cpuid(kvm: int, vcpu: int) -> None:
    """Give the vCPU all features of KVM: without the feature it has no long mode."""
    entries = 256
    # struct kvm_cpuid2: nent, padding; entries have 40 bytes.
    cpuid = bytearray(struct.pack("=II", entries, 0) + bytes(40 * entries))
    # Python does not copy buffers of more than 1024 bytes, but passes them on.
    ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid)
    ioctl(vcpu, KVM_SET_CPUID2, cpuid)
