"""The files to probe, of one kind: a new one for each row, if that is possible.

Each row begins with a file of four units, the first two of which are allocated, as far
as a file of that kind can be resized and allocated.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Final

from inaccfs import kvmcalls, syscalls
from inaccfs.errors import InaccfsError
from inaccfs.probe import calls, children
from inaccfs.probe.outcomes import NotHere

UNITS: Final = 4
ALLOCATED_UNITS: Final = 2

KEEP_SIZE: Final = syscalls.FALLOC_FL_KEEP_SIZE
PUNCH: Final = syscalls.PUNCH


class ProbeError(InaccfsError):
    """The target cannot be probed."""


def no_answer(name: str, ending: children.Ending) -> ProbeError:
    """The error for a child that did not get a file."""
    if ending.fate == children.HANGS:
        return ProbeError(
            f"{name} does not answer within {children.LIMIT:g} seconds: its daemon, or "
            "server, is stopped or stuck"
        )
    return ProbeError(f"{name}: a process that tries to make a file {ending.fate}")


class Target(ABC):
    """Files of one kind."""

    origin = "a new one for each row"
    """For people: where the file of a row comes from."""

    fresh = True
    """Whether each row has a file of its own."""

    def __init__(self, name: str, unit: int = mmap.PAGESIZE) -> None:
        """*name* is what the user calls it."""
        self.name: Final = name
        self.unit: Final = unit

    @abstractmethod
    def first_size(self, size: int) -> int:
        """Make a file and set its first size; an fd for reading and writing.

        Raises:
            OSError: a file of this kind cannot be given this size.
            NotHere: there is only one file, and it has a size already.
        """

    def make(self) -> int:
        """Make a file in the state that rows begin with; an fd to read and write.

        Raises:
            OSError: it cannot be made.
        """
        fd = self.first_size(UNITS * self.unit)
        # memfd_secret allocates only on faults.
        with suppress(OSError):
            syscalls.fallocate(fd, KEEP_SIZE, 0, ALLOCATED_UNITS * self.unit)
        return fd

    def make_another(self) -> int:
        """Make a second file, for calls that take two; an fd to read and write.

        Raises:
            OSError: it cannot be made.
            NotHere: there is only one.
        """
        return self.make()


class Memfd(Target):
    """memfd_create(2), with seals allowed."""

    def first_size(self, size: int) -> int:
        fd = os.memfd_create("inaccfs-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        return fd


class MemfdSecret(Target):
    """memfd_secret(2)."""

    def first_size(self, size: int) -> int:
        try:
            fd = calls.memfd_secret()
        except OSError as exc:
            if exc.errno != errno.ENOSYS:
                raise
            raise ProbeError(
                "no memfd_secret here: it takes Linux 5.14, before 6.5 booted with "
                "secretmem.enable=1"
            ) from exc
        os.ftruncate(fd, size)
        return fd


class GuestMemfd(Target):
    """KVM_CREATE_GUEST_MEMFD, of a new VM that is used for nothing else."""

    def __init__(self, name: str, flags: int) -> None:
        """*flags* are GUEST_MEMFD_FLAG_*."""
        super().__init__(name)
        self._flags = flags

    def first_size(self, size: int) -> int:
        vm = self._vm()
        try:
            return kvmcalls.create_guest_memfd(vm, size, self._flags)
        except OSError as exc:
            if exc.errno == errno.EINVAL and self._lacks_flags(vm):
                raise ProbeError(
                    f"no {self.name} here: this kernel's guest_memfd does not have the "
                    "flags"
                ) from exc
            raise
        finally:
            # The file holds a reference to its VM.
            os.close(vm)

    def _lacks_flags(self, vm: int) -> bool:
        try:
            os.close(kvmcalls.create_guest_memfd(vm, self.unit, self._flags))
        except OSError:
            return True
        return False

    @staticmethod
    def _vm() -> int:
        try:
            kvm = os.open(kvmcalls.DEVICE, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise ProbeError(
                f"no guest_memfd here: cannot open {kvmcalls.DEVICE}: {exc.strerror}"
            ) from exc
        try:
            vm = kvmcalls.vm_with_files(kvm)
        finally:
            os.close(kvm)
        if vm is None:
            raise ProbeError("no guest_memfd here: no VM of this KVM can have it")
        return vm


class Directory(Target):
    """Nameless files in a directory."""

    def first_size(self, size: int) -> int:
        fd = nameless_file(self.name)
        os.ftruncate(fd, size)
        return fd


class GivenFile(Target):
    """One file for all rows, which the user has named."""

    origin = (
        "the same for all rows: truncated to nothing, sized and punched before each, "
        "if it lets that be done"
    )
    fresh = False

    def first_size(self, size: int) -> int:
        fd = self._open()
        if os.fstat(fd).st_size:
            try:
                os.ftruncate(fd, 0)
            except OSError as exc:
                raise NotHere("has a size already") from exc
        os.ftruncate(fd, size)
        return fd

    def make(self) -> int:
        fd = self._open()
        for size in (0, UNITS * self.unit):
            with suppress(OSError):
                os.ftruncate(fd, size)
        # A file of inaccfs keeps its size, so its pages are still allocated here.
        with suppress(OSError):
            syscalls.fallocate(fd, PUNCH, 0, os.fstat(fd).st_size)
        with suppress(OSError):
            syscalls.fallocate(fd, KEEP_SIZE, 0, ALLOCATED_UNITS * self.unit)
        return fd

    def make_another(self) -> int:
        raise NotHere("takes two files")

    def _open(self) -> int:
        return os.open(self.name, os.O_RDWR | os.O_CLOEXEC)


def nameless_file(directory: str) -> int:
    """Make a file without a name; its fd."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        # EISDIR comes from file systems without O_TMPFILE.
        if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    fd, path = tempfile.mkstemp(prefix=".inaccfs-probe-", dir=directory)
    os.unlink(path)
    return fd
