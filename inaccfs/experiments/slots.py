"""A slot is deleted and made again: whether a gfn is private meanwhile, and after."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.experiments.lab import Experiment
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, MemoryFaultExit, MmioExit
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.experiments.lab import Bench, Lab
    from inaccfs.kvm.vm import Zap

_PAGES: Final = 4
_SIZE: Final = _PAGES * PAGE_SIZE
_PRIVATE: Final = 0
_SHARED: Final = 1
_TEXT: Final = b"secret"
_ACCESSES: Final = ((None, "does not say"), (True, "private"), (False, "shared"))


class _Guest:
    """A guest with a private page and a shared one."""

    def __init__(self, stack: ExitStack, bench: Bench, zap: Zap = "keeps") -> None:
        self._shim: Final = bench.shim
        self.fd: Final = self._new(stack, "guest")
        self.other: Final = self._new(stack, "other")
        self._half: Final = bytearray(_SIZE)
        self.vm: Final = stack.enter_context(VM(bench.shim, zap=zap))
        self._vcpu: Final = self.vm.create_vcpu()
        self.make(self.fd)
        self._convert(_PRIVATE, private=True)
        self._convert(_SHARED, private=False)
        for page, private in ((_PRIVATE, True), (_SHARED, False)):
            self._vcpu.write(page * PAGE_SIZE, _TEXT, private=private)

    def _new(self, stack: ExitStack, name: str) -> int:
        fd = self._shim.memfd_create(name, size=_SIZE)
        stack.callback(os.close, fd)
        return fd

    def _convert(self, page: int, *, private: bool) -> None:
        """Convert a page in the VM or in the file, whichever keeps the attribute."""
        if not self.vm.in_place:
            gpa = page * PAGE_SIZE
            self.vm.set_memory_attributes(gpa, PAGE_SIZE, private=private)
            return
        with self._shim.file(self.fd) as file:
            file.set_memory_attributes(page, 1, private)

    def make(self, fd: int) -> None:
        # If shared pages are the file's, there is no other half.
        half = None if self.vm.shared_in_file else self._half
        self.vm.set_user_memory_region(
            0, 0, _SIZE, private_fd=fd, shared=half, flags=KVM_MEM_PRIVATE
        )

    def delete(self) -> None:
        self.vm.set_user_memory_region(0, 0, 0)

    def kinds(self) -> str:
        """Whether KVM takes each of the two pages for private."""
        return ", ".join(
            "private" if self.vm.is_private(page) else "shared"
            for page in (_PRIVATE, _SHARED)
        )

    def read(self, page: int, *, private: bool | None) -> str:
        try:
            found = self._vcpu.read(page * PAGE_SIZE, len(_TEXT), private=private)
        except MmioExit:
            return "MMIO"
        except MemoryFaultExit as exc:
            if exc.errno not in (0, errno.EFAULT):
                return f"fault, {errnos.name(exc.errno)}"
            return "fault, private" if exc.private else "fault, shared"
        return "its data" if found == _TEXT else "zeros"


def _column(bench: Bench) -> Iterator[tuple[str, str]]:
    with ExitStack() as stack:
        guest = _Guest(stack, bench)

        def reads() -> Iterator[tuple[str, str]]:
            for page, name in ((_PRIVATE, "first"), (_SHARED, "second")):
                for private, says in _ACCESSES:
                    row = (
                        f"  {name}, guest {says}"
                        if private is None
                        else (f"  {name}, guest says {says}")
                    )
                    yield row, guest.read(page, private=private)

        yield "slot", guest.kinds()
        yield from reads()
        guest.delete()
        yield "slot deleted", guest.kinds()
        yield from reads()
        guest.make(guest.fd)
        yield "slot made anew", guest.kinds()
        yield from reads()
        guest.delete()
        guest.make(guest.other)
        yield "slot of another file", guest.kinds()
    with ExitStack() as stack:
        guest = _Guest(stack, bench, zap="destroys")
        guest.delete()
        guest.make(guest.fd)
        found = guest.read(_PRIVATE, private=True)
        yield "made anew, zaps destroy: first", found


def _run(lab: Lab) -> None:
    columns = []
    for semantics in lab.semantics:
        with lab.bench(semantics, size="4m", pfn_source="simulated") as bench:
            columns.append(list(_column(bench)))
    lab.columns(["", *map(lab.label, lab.semantics)], columns)


EXPERIMENT: Final = Experiment(
    name="slots",
    question="A slot is deleted and made again: which pages are private, when?",
    run=_run,
    semantics=("v8", "guest_memfd", "guest_memfd-7.2", "in-place-v8"),
)
