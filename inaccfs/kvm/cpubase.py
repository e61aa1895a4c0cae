"""What both CPUs for machine code have in common: all but executing an instruction.

`Cpu` uses unicorn for that; `SmallCpu` knows the few instructions of the rows' guests.
Each byte that an instruction reads, writes or is fetched from goes through `Vcpu`. If
one of its accesses exits, nothing of it has happened, and the next `run` repeats it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from inaccfs.deferring import Deferred
from inaccfs.errors import InaccfsError
from inaccfs.kvm import emulation
from inaccfs.kvm.probe.protocol import MemoryFault, MmioRead, MmioWrite, OtherExit
from inaccfs.kvm.uapi import PAGE_SIZE, MemoryFaultExit, MmioExit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.kvm.probe.protocol import Exit
    from inaccfs.kvm.vcpu import Vcpu

CpuMode: TypeAlias = Literal["real", "long"]

# The longest instruction of an x86 CPU, in bytes.
_LONGEST: Final = 15

INSTRUCTIONS: Final = 1_000_000
"""After so many instructions without an exit `run` gives up, by default."""

SECONDS: Final = 30.0
"""After so many seconds, too."""

# The size of a segment of code in real mode.
_SEGMENT: Final = 1 << 16

# Read the clock after so many instructions.
_LOOK: Final = 256


class GuestLimitError(InaccfsError):
    """A guest has run for too long without an exit."""


class Stopped(Exception):
    """The instruction is not executed; `exit` tells why."""

    def __init__(self, found: Exit) -> None:
        self.exit: Final = found
        super().__init__(found)


class _FetchedAnewError(Exception):
    """KVM emulates the instruction, and has fetched other bytes for it: `code`."""

    def __init__(self, code: bytes) -> None:
        self.code: Final = code
        super().__init__(code)


class CpuBase(ABC):
    """The base of both CPUs. One thread uses it at a time."""

    def __init__(
        self,
        vcpu: Vcpu,
        mode: CpuMode,
        private: Callable[[int], bool | None] | None,
    ) -> None:
        """See `Cpu`."""
        self.vcpu: Final = vcpu
        self._private: Final = vcpu.as_a_guest if private is None else private
        self.mode: Final = mode
        self._pc: Final = "rip" if mode == "long" else "eip"
        # Which hypercalls exit: KVM_CAP_EXIT_HYPERCALL.
        self.hypercalls: set[int] = set()
        # The fault of the last MemoryFault.
        self.fault: MemoryFaultExit | None = None
        # The VMM's answer to the exit that the instruction waits for.
        self._answer: bytes | None = None
        # The device access that the answer is for: its gpa and size; and the answers to
        # earlier accesses of the same instruction.
        self._awaited: tuple[int, int] | None = None
        self._answers: Final[dict[tuple[int, int], bytes]] = {}
        self._emulator: Final = emulation.Emulator(self)
        # An exit that follows the instruction: a write to a device.
        self._after: Exit | None = None
        # The current instruction: its address and the bytes fetched there; None if KVM
        # has fetched it.
        self._fetched: tuple[int, bytes] | None = None

    @abstractmethod
    def __getitem__(self, name: str) -> int:
        """The value of a register."""

    @abstractmethod
    def __setitem__(self, name: str, value: int) -> None:
        """Set a register."""

    def _reset(self) -> None:
        """Forget what an interrupted instruction has left."""
        self._after = None

    @abstractmethod
    def _execute(self, pc: int, code: bytes) -> Exit | None:
        """Execute the instruction at *pc*; *code* begins with it.

        If an access raises, registers and memory are as before.
        """

    # --- running ----------------------------------------------------------------------

    def start(self, gpa: int) -> None:
        """Make the next `run` begin at *gpa*, and forget the current instruction."""
        self._forget_answers()
        self[self._pc] = gpa

    def answer(self, data: bytes) -> None:
        """What a PortIn, MmioRead or Hypercall gives the guest at the next `run`."""
        if self._awaited is None:
            self._answer = data
        else:
            self._answers[self._awaited] = data.ljust(self._awaited[1], b"\0")

    def _forget_answers(self) -> None:
        self._answer = self._awaited = None
        self._answers.clear()

    def run(
        self,
        *,
        instructions: int | None = INSTRUCTIONS,
        seconds: float | None = SECONDS,
    ) -> Exit:
        """KVM_RUN: execute instructions until the next exit.

        Raises:
            GuestLimitError: that has taken too many *instructions* or *seconds*.
            ControlError: the daemon has ended.
        """
        due = None if seconds is None else time.monotonic() + seconds
        count = 0
        self._reset()
        with Deferred() as signals:
            while True:
                try:
                    found = self._step()
                except Stopped as stopped:
                    return stopped.exit
                if found is not None:
                    return found
                signals.deliver()
                count += 1
                late = due is not None and not count % _LOOK and time.monotonic() > due
                if late or count == instructions:
                    limit = f"for {seconds:g} s" if late else f"{count} instructions"
                    raise GuestLimitError(
                        f"the guest has run {limit} without an exit; it is at "
                        f"{self[self._pc]:#x}"
                    )

    def _step(self) -> Exit | None:
        """Execute one instruction, or one turn of a repeated one."""
        pc = self[self._pc]
        if self.mode == "real" and pc >= _SEGMENT:
            # #GP, for which the guest has no handler.
            return OtherExit(0, "KVM_EXIT_SHUTDOWN")
        code = self._fetch(pc)
        whole = code
        if len(code) < _LONGEST and self._emulator.is_cut(code):
            whole += self._fetch_on(pc + len(code))
        if (found := self._emulator.emulated(pc, whole)) is not None:
            return None if found == "done" else found
        self._fetched = pc, code
        try:
            return self._execute(pc, code)
        except _FetchedAnewError as other:
            self._fetched = None
            return self._execute(pc, other.code)

    def _emulate(self) -> None:
        """The instruction accesses a device, so KVM has to emulate it.

        KVM fetches it again, at userspace_addr, as it accesses all memory. So the
        content of a private page plays no part. (AMD's CPUs with decode assists hand
        KVM the bytes that they have fetched themselves.)
        """
        if self._fetched is None:
            return
        pc, code = self._fetched
        try:
            found = self.vcpu.read_by_address(pc, len(code))
        except MmioExit:
            return
        if found != code:
            raise _FetchedAnewError(found)

    # --- memory -----------------------------------------------------------------------

    def _fetch(self, pc: int) -> bytes:
        """The bytes at *pc* in its page, at most as many as an instruction has."""
        size = min(_LONGEST, PAGE_SIZE - pc % PAGE_SIZE)
        try:
            return self.vcpu.read(pc, size, private=self._private(pc))
        except MmioExit:
            # KVM cannot emulate what it cannot fetch.
            raise Stopped(OtherExit(0, "KVM_EXIT_INTERNAL_ERROR 1")) from None
        except (MemoryFaultExit, OSError) as exc:
            raise self._stopped(exc) from exc

    def _fetch_on(self, pc: int) -> bytes:
        """The bytes at *pc*, a page's first, at which an instruction continues."""
        if self.mode == "real" and pc >= _SEGMENT:
            return b""
        return self._fetch(pc)

    def _read(self, gpa: int, size: int) -> bytes:
        return b"".join(
            self._read_page(gpa + first, end - first)
            for first, end in _pages(gpa, size)
        )

    def _read_page(self, gpa: int, size: int) -> bytes:
        if (answer := self._answers.get((gpa, size))) is not None:
            self._emulate()
            return answer[:size]
        try:
            return self.vcpu.read(gpa, size, private=self._private(gpa))
        except MmioExit as exc:
            self._emulate()
            self._awaited = gpa, size
            raise Stopped(MmioRead(gpa, size)) from exc
        except (MemoryFaultExit, OSError) as exc:
            raise self._stopped(exc) from exc

    def _write(self, gpa: int, data: bytes) -> None:
        parts = list(_pages(gpa, len(data)))
        if len(parts) > 1:
            # Fault both pages in before writing to either.
            for first, end in parts:
                self._touch(gpa + first, end - first)
        for first, end in parts:
            self._write_page(gpa + first, data[first:end])

    def _touch(self, gpa: int, size: int) -> None:
        try:
            self.vcpu.read(gpa, size, private=self._private(gpa))
        except MmioExit:
            pass
        except (MemoryFaultExit, OSError) as exc:
            raise self._stopped(exc) from exc

    def _write_page(self, gpa: int, data: bytes) -> None:
        try:
            self.vcpu.write(gpa, data, private=self._private(gpa))
        except MmioExit:
            self._emulate()
            self._after = MmioWrite(gpa, data)
        except (MemoryFaultExit, OSError) as exc:
            raise self._stopped(exc) from exc

    def _stopped(self, exc: MemoryFaultExit | OSError) -> BaseException:
        """The exception that ends `run` when an access raises *exc*."""
        if isinstance(exc, MemoryFaultExit):
            self.fault = exc
            return Stopped(MemoryFault(exc.errno, exc.flags, exc.gpa, exc.size))
        if isinstance(exc, ConnectionError | PermissionError) or exc.errno is None:
            return exc
        return Stopped(OtherExit(exc.errno, "KVM_EXIT_UNKNOWN"))

    # --- what `emulation` uses --------------------------------------------------------

    def take_answer(self) -> bytes | None:
        """Take the VMM's answer; None if there is none."""
        found, self._answer = self._answer, None
        return found


def _pages(gpa: int, size: int) -> Iterator[tuple[int, int]]:
    """Split an access at page boundaries: offsets in its bytes."""
    first = 0
    while first < size:
        end = min(size, first + PAGE_SIZE - (gpa + first) % PAGE_SIZE)
        yield first, end
        first = end
