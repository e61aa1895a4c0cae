"""/dev/kvm of this machine, if rows can run on it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.kvm.probe.assembler import REAL, USER
from inaccfs.kvm.probe.real import RealKvm, RealOpponent
from inaccfs.kvmcalls import (
    CAPABILITIES,
    DEVICE,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
)

if TYPE_CHECKING:
    from inaccfs.kvm.probe.assembler import Mode

_MAPPED: Final = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED


class SkippedError(Exception):
    """Rows cannot run here; the message says why."""


class Here(NamedTuple):
    """The KVM of this machine."""

    opponent: RealOpponent
    semantics: str
    """The version whose rules are this kernel's."""


def find() -> Here:
    """Open /dev/kvm, and find out what it can do.

    Raises:
        SkippedError: it is missing, not permitted, of another architecture, or without
            guest_memfd.
    """
    check_architecture()
    try:
        kvm = RealKvm(REAL)
    except OSError as exc:
        raise SkippedError(f"{DEVICE}: {exc.strerror}") from exc
    try:
        vm = kvm.create_vm(kvm.vm_type)
        has_files = vm.check_extension(CAPABILITIES["KVM_CAP_GUEST_MEMFD"])
        vm.close()
    except OSError as exc:
        raise SkippedError(f"{DEVICE}: KVM_CREATE_VM: {exc.strerror}") from exc
    finally:
        os.close(kvm.fd)
    if not has_files:
        raise SkippedError(
            f"{DEVICE}: no VM of this kernel ({os.uname().release}) has guest_memfd"
        )
    # A KVM without two-dimensional paging may emulate a guest that is not at CPL 3.
    # Then guest_memfd gets no faults.
    mode: Mode = REAL if kvm.private else USER
    return Here(RealOpponent(mode), _semantics(kvm))


def check_architecture() -> None:
    """Check that this machine can run the guests' programs.

    Raises:
        SkippedError: it cannot.
    """
    machine = os.uname().machine
    if machine != "x86_64":
        raise SkippedError(f"the rows' guests are programs for x86_64, not {machine}")


def _semantics(kvm: RealKvm) -> str:
    if kvm.file_flags & _MAPPED == _MAPPED:
        return "guest_memfd:mmap+init_shared"
    return version_of(os.uname().release)


def version_of(release: str) -> str:
    """The version of guest_memfd's rules for private memory that a kernel has."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    release_of = tuple(map(int, numbers.groups())) if numbers else (6, 12)
    return "guest_memfd-6.8" if release_of < (6, 12) else "guest_memfd-6.12"
