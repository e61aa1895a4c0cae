"""Row 7: what allocates a page, and how many pages both halves have at once."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, MemoryFaultExit, Vmm
from inaccfs.kvm.memory import resident
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import V8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inaccfs.experiments.lab import Bench, Lab

_PAGES: Final = 64
_RACES: Final = 16


class OnFault(V8):
    """v8, as posted: get-pfn allocates, as with SGP_WRITE."""

    allocates = True


class NoAlloc(V8):
    """The variant that Michael Roth asked for: only fallocate(2) allocates."""

    allocates = False


class _Guest:
    """A guest, and a VMM with a policy of allocation."""

    def __init__(
        self, stack: ExitStack, bench: Bench, allocates: str, *, punches: bool
    ) -> None:
        """*allocates* is when the VMM allocates: "never", "at start" or "on exit"."""
        self._allocates: Final = allocates
        self._fd: Final = bench.shim.memfd_create("guest", size=_PAGES * PAGE_SIZE)
        stack.callback(os.close, self._fd)
        self._shared: Final = mmap.mmap(-1, _PAGES * PAGE_SIZE)
        self.vm: Final = stack.enter_context(
            VM(bench.shim, default_private=True, hooks=self._hook)
        )
        self.vm.set_user_memory_region(
            0,
            0,
            _PAGES * PAGE_SIZE,
            private_fd=self._fd,
            shared=self._shared,
            flags=KVM_MEM_PRIVATE,
        )
        self._vmm: Final = Vmm(self.vm, discard=punches)
        self._vcpu: Final = self.vm.create_vcpu()
        self.conversions = 0
        self.enoents = 0
        # The largest number of pages so far.
        self.peak = 0
        # Whether to convert in the middle of the next pre-fault.
        self._overtaken = False
        if allocates == "at start":
            self.allocate(0, _PAGES)

    def allocate(self, page: int, count: int = 1) -> None:
        parts.allocate(self._fd, count, page)

    # --- what the guest does ----------------------------------------------------------

    def touch(self, pages: Iterable[int], *, private: bool) -> None:
        """Write to each page; the VMM handles exits.

        Raises:
            MemoryFaultExit: the VMM cannot handle it.
        """
        for page in pages:
            while True:
                try:
                    self._vcpu.write(page * PAGE_SIZE, b"x", private=private)
                    break
                except MemoryFaultExit as exc:
                    self._handle(page, exc)
                self.count()

    def _handle(self, page: int, exc: MemoryFaultExit) -> None:
        if exc.asks:
            self.conversions += 1
            self._vmm.handle(exc)
            if exc.private and self._allocates == "at start":
                self.allocate(page)
            return
        self.enoents += exc.errno == errno.ENOENT
        if self._allocates != "on exit" or exc.errno != errno.ENOENT:
            raise exc
        self.allocate(page)

    def host_reads(self) -> None:
        """The VMM reads all of the shared half, allocated or not."""
        for page in range(_PAGES):
            self._shared[page * PAGE_SIZE]

    # --- a page is pre-faulted while it is converted ----------------------------------

    def race(self, page: int) -> None:
        self._overtaken = True
        # If get-pfn does not allocate, it finds no page.
        with suppress(FileNotFoundError):
            self.vm.pre_fault_memory(page * PAGE_SIZE, PAGE_SIZE)

    def _hook(self, point: str, start: int, _end: int) -> None:
        if point == "fault:begin" and self._overtaken:
            self._overtaken = False
            self._vmm.convert(start * PAGE_SIZE, PAGE_SIZE, private=False)
            self._shared[start * PAGE_SIZE] = 1

    # --- what there is ----------------------------------------------------------------

    def count(self) -> tuple[int, int, int]:
        """Count the pages in the file, in the shared half, and in both."""
        private = os.fstat(self._fd).st_blocks * 512 // PAGE_SIZE
        shared = sum(byte & 1 for byte in resident(self._shared, 0, _PAGES))
        self.peak = max(self.peak, private + shared)
        return private, shared, self.vm.double_allocated()

    def counted(self) -> str:
        private, shared, both = self.count()
        return f"{private}+{shared}" + (f" ({both})" if both else "")


_STEPS: Final[tuple[tuple[str, Callable[[_Guest], None]], ...]] = (
    ("start", lambda _: None),
    ("boot", lambda guest: guest.touch(range(32), private=True)),
    ("share", lambda guest: guest.touch(range(16, 48), private=False)),
    ("take back", lambda guest: guest.touch(range(16, 24), private=True)),
    ("host reads", lambda guest: guest.host_reads()),
)


def _live(bench: Bench, allocates: str, *, punches: bool) -> list[object]:
    with ExitStack() as stack:
        guest = _Guest(stack, bench, allocates, punches=punches)
        found: list[object] = [allocates, "punches" if punches else "keeps"]
        for _, step in _STEPS:
            try:
                step(guest)
            except MemoryFaultExit as exc:
                found.append(errnos.name(exc.errno))
                break
            found.append(guest.counted())
        found += ["-"] * (len(_STEPS) + 2 - len(found))
        return [*found, guest.peak, guest.conversions, guest.enoents]


def _race(bench: Bench) -> list[object]:
    with ExitStack() as stack:
        guest = _Guest(stack, bench, "at start", punches=True)
        for page in range(_RACES):
            guest.race(page)
        return list(guest.count())


def _run(lab: Lab) -> None:
    rows: list[list[object]] = []
    races: list[list[object]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, size="4m", huge="never") as bench:
            # A guest whose faults allocate gets no such exit.
            exits = [] if bench.shim.query_semantics().allocates else ["on exit"]
            for allocates in ("never", *exits, "at start"):
                for punches in (True, False):
                    row = _live(bench, allocates, punches=punches)
                    rows.append([bench.semantics, *row])
            races.append([bench.semantics, *_race(bench)])
    lab.say(f"Of {_PAGES} pages: private + shared, and (in both halves)")
    head = "rules", "VMM allocates", "and", *(name for name, _ in _STEPS)
    lab.table([*head, "peak", "conversions", "ENOENT"], rows)
    lab.say(f"\n{_RACES} pages, each pre-faulted while it is converted to shared")
    lab.table(["rules", "private", "shared", "both"], races)


EXPERIMENT: Final = Experiment(
    name="allocation",
    question="What allocates a page, and how many pages are allocated twice?",
    run=_run,
    semantics=(f"{__file__}:OnFault", f"{__file__}:NoAlloc"),
)
