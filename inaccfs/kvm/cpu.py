"""A vCPU that runs machine code: an emulated x86 CPU whose memory is the VM's.

The CPU is unicorn's (QEMU's, as a library). It has no memory of its own: each byte that
an instruction reads, writes or is fetched from goes through `Vcpu`, so it faults, exits
and is invalidated as any access of a guest. One instruction is executed at a time. If
one of its accesses exits, nothing of it has happened, and the next `run` repeats it.

unicorn needs memory to read from: `Scratch` maps the page of each access for the
length of one instruction, filled with what the vCPU has read.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from inaccfs.errors import InaccfsError
from inaccfs.kvm import emulation
from inaccfs.kvm.deferring import Deferred
from inaccfs.kvm.probe.protocol import (
    MemoryFault,
    MmioRead,
    MmioWrite,
    OtherExit,
)
from inaccfs.kvm.scratch import Scratch
from inaccfs.kvm.uapi import PAGE_SIZE, MemoryFaultExit, MmioExit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.kvm.probe.protocol import Exit
    from inaccfs.kvm.vcpu import Vcpu

CpuMode: TypeAlias = Literal["real", "long"]

# The longest instruction of an x86 CPU, in bytes.
_LONGEST: Final = 15

INSTRUCTIONS: Final = 1_000_000
"""After so many instructions without an exit `run` gives up, unless told otherwise."""

SECONDS: Final = 30.0
"""After so many seconds, too."""

# The size of a segment of code in real mode.
_SEGMENT: Final = 1 << 16

# Where unicorn would stop: never.
_NOWHERE: Final = (1 << 64) - 1

# How often the clock is looked at, in instructions.
_LOOK: Final = 256


class GuestUnavailableError(InaccfsError, ImportError):
    """The package unicorn is not installed."""


class GuestLimitError(InaccfsError):
    """A guest has run for long without an exit."""


def check_available() -> None:
    """Raise `GuestUnavailableError` unless unicorn is installed."""
    try:
        importlib.import_module("unicorn")
        importlib.import_module("unicorn.x86_const")
    except ImportError:
        raise GuestUnavailableError(
            "guests of machine code need the package unicorn: "
            "pip install inaccfs[guest]"
        ) from None


class _Stopped(Exception):
    """The instruction is not executed: `exit` comes first."""

    def __init__(self, found: Exit) -> None:
        self.exit: Final = found
        super().__init__(found)


class Cpu:
    """Runs machine code on a `Vcpu`. One thread uses it at a time.

    Mode "long" is 64-bit code without paging, "real" is 16-bit code whose segments
    begin at 0; in both an address is a gpa. In real mode data can be anywhere below 4
    GiB, and code below 64 KiB. Registers are read and written by name: `cpu["rax"]`, in
    real mode `cpu["eax"]`.

    Where the guest decides whether an access is private (the rule kvm_access), it is
    private in slots with a file, unless *private* says otherwise: a function of the
    gpa. A locked instruction is not atomic for other vCPUs.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        *,
        mode: CpuMode = "long",
        private: Callable[[int], bool | None] | None = None,
    ) -> None:
        """Raises `GuestUnavailableError`."""
        check_available()
        unicorn: Any = importlib.import_module("unicorn")
        self._registers: Final[Any] = importlib.import_module("unicorn.x86_const")
        self.vcpu: Final = vcpu
        self._private: Final = vcpu.as_a_guest if private is None else private
        self.mode: Final = mode
        bits = unicorn.UC_MODE_64 if mode == "long" else unicorn.UC_MODE_16
        self._uc: Final[Any] = unicorn.Uc(unicorn.UC_ARCH_X86, bits)
        self._error: Final[Any] = unicorn.UcError
        self._pc: Final = "rip" if mode == "long" else "eip"
        # Which hypercalls exit: KVM_CAP_EXIT_HYPERCALL.
        self.hypercalls: set[int] = set()
        # The fault of the last MemoryFault.
        self.fault: MemoryFaultExit | None = None
        # What the VMM has answered to the exit that the instruction waits for.
        self._answer: bytes | None = None
        # The device access that this is for: its gpa and size; and the answers to those
        # that the instruction has made before.
        self._awaited: tuple[int, int] | None = None
        self._answers: Final[dict[tuple[int, int], bytes]] = {}
        self._scratch: Final = Scratch(self._uc, self._read, self._write)
        self._emulator: Final = emulation.Emulator(self)
        # An exit that comes after the instruction: a write to a device.
        self._after: Exit | None = None
        self._hook(unicorn)

    def _hook(self, unicorn: Any) -> None:  # noqa: ANN401 - of a package without types
        add, scratch = self._uc.hook_add, self._scratch
        unmapped = unicorn.UC_HOOK_MEM_READ_UNMAPPED
        add(unmapped, self._caught(scratch.read_unmapped))
        add(unicorn.UC_HOOK_MEM_WRITE_UNMAPPED, self._caught(scratch.write_unmapped))
        add(unicorn.UC_HOOK_MEM_FETCH_UNMAPPED, self._caught(self._fetch_unmapped))
        add(unicorn.UC_HOOK_MEM_READ, self._caught(scratch.read_mapped))
        add(unicorn.UC_HOOK_MEM_WRITE, self._caught(scratch.write_mapped))
        # What is raised in a hook, and where the exit of the instruction is kept.
        self._raised: BaseException | None = None

    def _caught(self, call: Callable[[int, int, int], None]) -> Callable[..., bool]:
        """*call* as a hook of unicorn, which refuses the access if it raises."""

        def hook(
            uc: Any,  # noqa: ANN401 - of a package without types
            access: int,
            address: int,
            size: int,
            value: int,
            data: object,
        ) -> bool:
            if self._raised is None:
                try:
                    call(address, size, value)
                except BaseException as exc:
                    self._raised = exc
                    uc.emu_stop()
            return self._raised is None

        return hook

    # --- registers --------------------------------------------------------------------

    def _register(self, name: str) -> int:
        number: int | None = getattr(
            self._registers, f"UC_X86_REG_{name.upper()}", None
        )
        if number is None:
            raise KeyError(f"an x86 CPU has no register {name!r}")
        return number

    def __getitem__(self, name: str) -> int:
        value: int = self._uc.reg_read(self._register(name))
        return value

    def __setitem__(self, name: str, value: int) -> None:
        self._uc.reg_write(self._register(name), value)

    # --- running ----------------------------------------------------------------------

    def start(self, gpa: int) -> None:
        """Begin at *gpa* with the next `run`, whatever came before."""
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
            ControlError: the daemon has gone.
        """
        due = None if seconds is None else time.monotonic() + seconds
        count = 0
        self._scratch.reset()
        with Deferred() as signals:
            while True:
                try:
                    found = self._step()
                except _Stopped as stopped:
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
        """Execute one instruction, or as much of a repeated one as goes at once."""
        pc = self[self._pc]
        if self.mode == "real" and pc >= _SEGMENT:
            # #GP, and no handler is there.
            return OtherExit(0, "KVM_EXIT_SHUTDOWN")
        code = self._fetch(pc)
        if (found := self._emulator.emulated(pc, code)) is not None:
            return None if found == "done" else found
        before = self._uc.context_save()
        try:
            self._execute(pc, code)
        except BaseException as exc:
            # Ctrl-C, too, may come in the middle of it.
            self._uc.context_restore(before)
            self[self._pc] = pc
            if isinstance(exc, self._error):
                # No handler is there for what the CPU raises.
                return OtherExit(0, "KVM_EXIT_SHUTDOWN")
            raise
        self._forget_answers()
        return self._after

    def _execute(self, pc: int, code: bytes) -> None:
        """Have unicorn execute an instruction.

        Raises:
            BaseException: what an access raises; all that has happened is to be undone.
        """
        self._scratch.begin(pc, code)
        turns = self._turns()
        self._raised = self._after = None
        try:
            self._uc.emu_start(pc, _NOWHERE, 0, 1)
            if self._turns() == turns and self._scratch.writes_code(pc):
                # unicorn has begun an instruction that changes code, and drops what it
                # knew of the code: the second beginning is carried out.
                self._scratch.begin(pc, code)
                self._uc.emu_start(pc, _NOWHERE, 0, 2)
        except self._error:
            if self._raised is None:
                raise
        if self._raised is not None:
            raise self._raised
        self._scratch.finish()

    def _turns(self) -> list[int]:
        """Registers of which each instruction that writes memory changes one."""
        names = ("cx", "sp", "si", "di")
        prefix = "r" if self.mode == "long" else "e"
        return [self[self._pc], *(self[prefix + name] for name in names)]

    # --- memory -----------------------------------------------------------------------

    def _fetch(self, pc: int) -> bytes:
        """The bytes at *pc*, as many as an instruction may have and the page has."""
        size = min(_LONGEST, PAGE_SIZE - pc % PAGE_SIZE)
        try:
            return self.vcpu.read(pc, size, private=self._private(pc))
        except MmioExit:
            # KVM cannot emulate what it cannot fetch.
            raise _Stopped(OtherExit(0, "KVM_EXIT_INTERNAL_ERROR 1")) from None
        except (MemoryFaultExit, OSError) as exc:
            raise self._stopped(exc) from exc

    def _fetch_unmapped(self, address: int, size: int, value: int) -> None:
        """An instruction goes on on the next page."""
        self._scratch.put(address, self._fetch(address))

    def _read(self, gpa: int, size: int) -> bytes:
        return b"".join(
            self._read_page(gpa + first, end - first)
            for first, end in _pages(gpa, size)
        )

    def _read_page(self, gpa: int, size: int) -> bytes:
        if (answer := self._answers.get((gpa, size))) is not None:
            return answer[:size]
        try:
            return self.vcpu.read(gpa, size, private=self._private(gpa))
        except MmioExit as exc:
            self._awaited = gpa, size
            raise _Stopped(MmioRead(gpa, size)) from exc
        except (MemoryFaultExit, OSError) as exc:
            raise self._stopped(exc) from exc

    def _write(self, gpa: int, data: bytes) -> None:
        parts = list(_pages(gpa, len(data)))
        if len(parts) > 1:
            # Both pages fault before anything is written.
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
            self._after = MmioWrite(gpa, data)
        except (MemoryFaultExit, OSError) as exc:
            raise self._stopped(exc) from exc

    def _stopped(self, exc: MemoryFaultExit | OSError) -> BaseException:
        """What ends `run` for an access that raises *exc*."""
        if isinstance(exc, MemoryFaultExit):
            self.fault = exc
            return _Stopped(MemoryFault(exc.errno, exc.flags, exc.gpa, exc.size))
        if isinstance(exc, ConnectionError | PermissionError) or exc.errno is None:
            return exc
        return _Stopped(OtherExit(exc.errno, "KVM_EXIT_UNKNOWN"))

    # --- what `emulation` uses --------------------------------------------------------

    def take_answer(self) -> bytes | None:
        """The answer of the VMM, once."""
        found, self._answer = self._answer, None
        return found


def _pages(gpa: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of an access that are in one page each: offsets in its bytes."""
    first = 0
    while first < size:
        end = min(size, first + PAGE_SIZE - (gpa + first) % PAGE_SIZE)
        yield first, end
        first = end
