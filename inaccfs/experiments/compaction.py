"""Row 4: after put-pfn the kernel may migrate a page that KVM still maps."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.errors import InaccfsError
from inaccfs.experiments.lab import Experiment
from inaccfs.experiments.parts import Neighbour, allocate
from inaccfs.kvm import KVM_MEM_PRIVATE, VM
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.mmcalls import MADV_COLLAPSE
from inaccfs.syscalls import fallocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.client import Client
    from inaccfs.experiments.lab import Bench, Lab

_FILES: Final = 4
# Pages of each file: as many as in two huge pages.
_PAGES: Final = 1024
_MAPPED: Final = _FILES * _PAGES

# The length of the guest's runs of pages, which is also that of the gaps between them.
_CHUNK: Final = 16
_GAP: Final = 48

# How often memory is compacted: the kernel may give up half way each time.
_ROUNDS: Final = 3

# How many guests are tried before we conclude that movable pages do not move.
_TRIES: Final = 5

# How many pages another file allocates in the end.
_OTHERS: Final = 16384

_COMPACT: Final = Path("/proc/sys/vm/compact_memory")
# Freed pages first go to per-CPU lists, which the compactor does not see. The larger
# this is, the shorter are the lists; 0 is the kernel's default.
_LISTS: Final = Path("/proc/sys/vm/percpu_pagelist_high_fraction")
_SHORT: Final = "99991"


@contextmanager
def _fragmented() -> Iterator[None]:
    """Fill all holes except the guest's: the compactor gets stuck in smaller ones."""
    before = _LISTS.read_text().strip()
    _LISTS.write_text(_SHORT)
    scraps = os.memfd_create("scraps")
    try:
        fallocate(scraps, 0, 0, _scraps())
        yield
    finally:
        os.close(scraps)
        # Another process may do the same at the same time.
        _LISTS.write_text("0" if before == _SHORT else before)


def _scraps() -> int:
    """How many bytes are free in blocks of up to 32 pages; 1 GiB is enough."""
    zones = Path("/proc/buddyinfo").read_text().splitlines()
    counts = [zone.split()[4:10] for zone in zones]
    free = sum(
        int(count) << order for each in counts for order, count in enumerate(each)
    )
    return min(max(free, 1), 1 << 18) * PAGE_SIZE


class _Guest:
    """A VM that maps all pages of some files, and has put all references."""

    def __init__(self, stack: ExitStack, bench: Bench) -> None:
        self._shim: Final = bench.shim
        self._puts: Final = self._shim.query_semantics().keeps_references
        size = _PAGES * PAGE_SIZE
        self.fds: Final = [self._file(stack, size) for _ in range(_FILES)]
        # Give the compactor work: holes next to all pages, into which pages can move.
        with ExitStack() as gaps:
            gap = self._file(gaps, _MAPPED * _GAP // _CHUNK * PAGE_SIZE)
            at = 0
            for start in range(0, _PAGES, _CHUNK):
                for fd in self.fds:
                    allocate(fd, _CHUNK, start)
                    allocate(gap, _GAP, at)
                    at += _GAP
        self.vm: Final = stack.enter_context(VM(self._shim, default_private=True))
        for slot, fd in enumerate(self.fds):
            self.vm.set_user_memory_region(
                slot, slot * size, size, private_fd=fd, flags=KVM_MEM_PRIVATE
            )
        self.vm.pre_fault_memory(0, _FILES * size)

    def _file(self, stack: ExitStack, size: int) -> int:
        fd = self._shim.memfd_create("guest", size=size)
        stack.callback(os.close, fd)
        return fd

    def stale(self) -> set[int]:
        """The mapped frames that are no longer those of their pages.

        The shim notices a move only in get-pfn, so another client gets all pages again.
        """
        for fd in self.fds:
            with self._shim.file(fd) as file:
                for extent in file.get_pfns(0, _PAGES):
                    if self._puts:
                        file.put_pfn(extent.pfn, extent.count, wait=False)
        return {each.pfn for each in self.vm.stale_sptes()}


# --- what moves pages ----------------------------------------------------------------


def _compact(_bench: Bench, _guest: _Guest) -> str:
    """Compact all memory now, as kcompactd does when huge pages are wanted."""
    for _ in range(_ROUNDS):
        _COMPACT.write_text("1")
    return "ok"


def _collapse(bench: Bench, guest: _Guest) -> str:
    return ", ".join(sorted({collapse(bench.shim, fd) for fd in guest.fds}))


def collapse(shim: Client, fd: int) -> str:
    """Collapse a file to huge pages, like khugepaged. Returns "ok", or the errno."""
    with shim.file(fd) as file:
        memory = file.get_memory()
    try:
        with closing(mmap.mmap(memory, 0)) as mapped:
            mapped.madvise(MADV_COLLAPSE)
    except OSError as exc:
        return errnos.name(exc.errno)
    finally:
        os.close(memory)
    return "ok"


_MOVERS: Final[tuple[tuple[str, Callable[[Bench, _Guest], str]], ...]] = (
    ("compact_memory", _compact),
    ("MADV_COLLAPSE", _collapse),
)


def _watch(bench: Bench, mover: Callable[[Bench, _Guest], str]) -> list[object]:
    """Move pages and watch the guest; the last five columns."""
    with _fragmented(), ExitStack() as stack:
        guest = _Guest(stack, bench)
        events = bench.shim.query_stats().events
        outcome = mover(bench, guest)
        stale = guest.stale()
        sent = bench.shim.query_stats().events - events
        if not stale:
            return [outcome, 0, "none", sent, 0]
        others = Neighbour(stack, bench.shim, _OTHERS)
        others.take(_OTHERS)
        return [outcome, len(stale), "some", sent, len(stale & others.frames)]


def _run(lab: Lab) -> None:
    if os.geteuid() != 0 or not _COMPACT.exists():
        raise InaccfsError("compaction: needs root, and a kernel that can compact")
    rows: list[tuple[object, ...]] = []
    for semantics in lab.semantics:
        # Huge pages only on request, such as MADV_COLLAPSE.
        with lab.bench(semantics, size="512m", huge="advise") as bench:
            movable = bench.shim.query_semantics().movable
            pins = bench.shim.query_status().pinning.split(" ")[0]
            for name, mover in _MOVERS:
                for _ in range(_TRIES if movable else 1):
                    if "some" in (found := _watch(bench, mover)):
                        break
                rule = "may move" if movable else "stays"
                rows.append((bench.semantics, rule, pins, name, *found))
    lab.say(f"Of {_MAPPED} pages that KVM has mapped, and put")
    head = "rules", "a page", "pinned by", "the kernel", "", "moved", "", "events"
    lab.table([*head, "now another's"], rows)


EXPERIMENT: Final = Experiment(
    name="compaction",
    question="After put-pfn the kernel may move a page: does KVM learn of that?",
    run=_run,
    semantics=("v8", "v8-as-posted", "v9", "v10"),
    exact=False,
)
