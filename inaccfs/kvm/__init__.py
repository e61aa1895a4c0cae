"""A simulated KVM, after patches 2 to 8 of the series: the shim's consumer.

An ordinary client of the control socket. `VM` is the way in; docs/simulated-kvm.md
says what is faithful and what is simplified.
"""

from __future__ import annotations

from inaccfs.kvm.audit import StaleSpte
from inaccfs.kvm.encryption import EncryptionUnavailableError
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
    "EncryptionUnavailableError",
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
