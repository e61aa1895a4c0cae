"""A vCPU that runs machine code: an emulated x86 CPU whose memory is the VM's.

The CPU is unicorn's (QEMU's, as a library). It has no memory: each byte that an
instruction reads, writes or is fetched from goes through `Vcpu`, so it faults, exits
and is invalidated like any access of a guest. One instruction is executed at a time. If
one of its accesses exits, nothing of it has happened, and the next `run` repeats it.

unicorn needs memory to read from: `Scratch` maps the page of each access for the
length of one instruction, filled with what the vCPU has read.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from inaccfs.errors import InaccfsError
from inaccfs.kvm.cpubase import CpuBase
from inaccfs.kvm.probe.protocol import OtherExit
from inaccfs.kvm.scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.kvm.cpubase import CpuMode
    from inaccfs.kvm.probe.protocol import Exit
    from inaccfs.kvm.vcpu import Vcpu

# Where unicorn would stop: never.
_NOWHERE: Final = (1 << 64) - 1


class GuestUnavailableError(InaccfsError, ImportError):
    """The package unicorn is not installed."""


def check_available() -> None:
    """Raise `GuestUnavailableError` unless unicorn is installed."""
    try:
        importlib.import_module("unicorn")
        importlib.import_module("unicorn.x86_const")
    except ImportError:
        raise GuestUnavailableError(
            "guests of machine code need the package unicorn: "
            "pip install 'inaccfs[guest]'"
        ) from None


class Cpu(CpuBase):
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
        super().__init__(vcpu, mode, private)
        unicorn: Any = importlib.import_module("unicorn")
        self._registers: Final[Any] = importlib.import_module("unicorn.x86_const")
        bits = unicorn.UC_MODE_64 if mode == "long" else unicorn.UC_MODE_16
        self._uc: Final[Any] = unicorn.Uc(unicorn.UC_ARCH_X86, bits)
        self._error: Final[Any] = unicorn.UcError
        self._scratch: Final = Scratch(self._uc, self._read, self._write)
        self._hook(unicorn)

    def _hook(self, unicorn: Any) -> None:  # noqa: ANN401 - of a package without types
        add, scratch = self._uc.hook_add, self._scratch
        unmapped = unicorn.UC_HOOK_MEM_READ_UNMAPPED
        add(unmapped, self._caught(scratch.read_unmapped))
        add(unicorn.UC_HOOK_MEM_WRITE_UNMAPPED, self._caught(scratch.write_unmapped))
        add(unicorn.UC_HOOK_MEM_FETCH_UNMAPPED, self._caught(self._fetch_unmapped))
        add(unicorn.UC_HOOK_MEM_READ, self._caught(scratch.read_mapped))
        add(unicorn.UC_HOOK_MEM_WRITE, self._caught(scratch.write_mapped))
        # The exception that a hook has raised; and the exit of the instruction.
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

    def _reset(self) -> None:
        super()._reset()
        self._scratch.reset()

    def _execute(self, pc: int, code: bytes) -> Exit | None:
        before = self._uc.context_save()
        try:
            self._have_executed(pc, code)
        except BaseException as exc:
            # Ctrl-C may interrupt an instruction, too.
            self._uc.context_restore(before)
            self[self._pc] = pc
            if isinstance(exc, self._error):
                # The guest has no handler for the CPU's exception.
                return OtherExit(0, "KVM_EXIT_SHUTDOWN")
            raise
        self._forget_answers()
        return self._after

    def _have_executed(self, pc: int, code: bytes) -> None:
        """Have unicorn execute an instruction.

        Raises:
            BaseException: what an access raises; the caller must undo the instruction.
        """
        self._scratch.begin(pc, code)
        turns = self._turns()
        self._raised = self._after = None
        try:
            self._uc.emu_start(pc, _NOWHERE, 0, 1)
            if self._turns() == turns and self._scratch.writes_code(pc):
                # unicorn has begun an instruction that changes code, and discards its
                # translation of the code. It carries the instruction out when it begins
                # it again.
                self._scratch.begin(pc, code)
                self._uc.emu_start(pc, _NOWHERE, 0, 2)
        except self._error:
            if self._raised is None:
                raise
        if self._raised is not None:
            raise self._raised
        self._scratch.finish()

    def _turns(self) -> list[int]:
        """Registers: each instruction that writes memory changes one of them."""
        names = ("cx", "sp", "si", "di")
        prefix = "r" if self.mode == "long" else "e"
        return [self[self._pc], *(self[prefix + name] for name in names)]

    def _fetch_unmapped(self, address: int, size: int, value: int) -> None:
        """Hook: an instruction continues on the next page."""
        self._scratch.put(address, self._fetch(address))
