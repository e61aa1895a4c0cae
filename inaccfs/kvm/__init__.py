"""A simulated KVM, after patches 2 to 8 of the series: the shim's consumer.

An ordinary client of the control socket. `VM` is the way in; docs/simulated-kvm.md
says what is faithful and what is simplified.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from inaccfs.kvm.audit import StaleSpte
    from inaccfs.kvm.cpu import Cpu, GuestUnavailableError
    from inaccfs.kvm.cpubase import GuestLimitError
    from inaccfs.kvm.encryption import EncryptionUnavailableError
    from inaccfs.kvm.guest import Guest
    from inaccfs.kvm.memslots import MemorySlot
    from inaccfs.kvm.pagetable import ByLevel, Run
    from inaccfs.kvm.stats import Stats
    from inaccfs.kvm.uapi import (
        KVM_LPAGE_PRIVATE_SHARED_MIXED,
        KVM_MEM_PRIVATE,
        KVM_MEMORY_EXIT_FLAG_PRIVATE,
        PG_LEVEL_1G,
        PG_LEVEL_2M,
        PG_LEVEL_4K,
        MemoryFaultExit,
        MmioExit,
        Spte,
        VcpuExit,
    )
    from inaccfs.kvm.vcpu import Vcpu
    from inaccfs.kvm.vm import VM
    from inaccfs.kvm.vmm import Vmm

__all__ = [
    "KVM_LPAGE_PRIVATE_SHARED_MIXED",
    "KVM_MEMORY_EXIT_FLAG_PRIVATE",
    "KVM_MEM_PRIVATE",
    "PG_LEVEL_1G",
    "PG_LEVEL_2M",
    "PG_LEVEL_4K",
    "VM",
    "ByLevel",
    "Cpu",
    "EncryptionUnavailableError",
    "Guest",
    "GuestLimitError",
    "GuestUnavailableError",
    "MemoryFaultExit",
    "MemorySlot",
    "MmioExit",
    "Run",
    "Spte",
    "StaleSpte",
    "Stats",
    "Vcpu",
    "VcpuExit",
    "Vmm",
]

# Where a name is that is not in `uapi`.
_ELSEWHERE: Final = {
    "StaleSpte": "audit",
    "Cpu": "cpu",
    "GuestLimitError": "cpubase",
    "GuestUnavailableError": "cpu",
    "EncryptionUnavailableError": "encryption",
    "Guest": "guest",
    "MemorySlot": "memslots",
    "ByLevel": "pagetable",
    "Run": "pagetable",
    "Stats": "stats",
    "Vcpu": "vcpu",
    "VM": "vm",
    "Vmm": "vmm",
}


def __getattr__(name: str) -> object:
    # Import the client only when it is used: `kvm.probe` also runs under an emulated
    # CPU, where the imports would take longer than the rows.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"inaccfs.kvm.{_ELSEWHERE.get(name, 'uapi')}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
