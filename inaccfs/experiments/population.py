"""Row 14: how a VMM gives a guest its first content, and what can go wrong."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs import errnos
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import InPlaceV8

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.experiments.lab import Bench, Lab
    from inaccfs.semantics.attributes import Population

_PAGES: Final = 8
_IMAGE: Final = b"kernel" + bytes(PAGE_SIZE - 6)
_DATA: Final = b"guest's" + bytes(PAGE_SIZE - 7)
_NAMES: Final = {_IMAGE: "image", _DATA: "its data", bytes(PAGE_SIZE): "zeros"}
# The page before which something else happens.
_MIDDLE: Final = 4


class WriteInPlace(InPlaceV8):
    """in-place-v8 for a file that begins as shared and is filled by write(2)."""

    initial = "shared"
    population: ClassVar[Population] = "write"  # type: ignore[assignment]


class _Vmm:
    """A VMM with an image of 8 pages, and a file for its guest."""

    def __init__(self, stack: ExitStack, bench: Bench) -> None:
        self._shim: Final = bench.shim
        size = _PAGES * PAGE_SIZE
        self.rules: Final = bench.shim.query_semantics()
        self.fd: Final = bench.shim.memfd_create("guest", size=size)
        stack.callback(os.close, self.fd)
        self.file: Final = stack.enter_context(bench.shim.file(self.fd))
        # The memory that the guest reads and writes, as root can see it.
        self._memory: Final = self.file.get_memory()
        stack.callback(os.close, self._memory)
        self.window: Final = self.file.shared_window()
        self._source_fd: Final = bench.shim.memfd_create("image", size=size)
        stack.callback(os.close, self._source_fd)
        self.source: Final = stack.enter_context(bench.shim.file(self._source_fd))
        self.peak = 0

    def load_source(self) -> None:
        """Copy the image to host memory, which a command can name."""
        with suppress(OSError):
            self.source.set_memory_attributes(0, _PAGES, False)
        memory = self.source.get_memory()
        os.pwrite(memory, _IMAGE * _PAGES, 0)
        os.close(memory)

    def convert(self, *, private: bool) -> None:
        """Convert all pages, if attributes are kept in the file."""
        if self.rules.in_place:
            self.file.set_memory_attributes(0, _PAGES, private)

    def count(self) -> None:
        """Count the memory of the file and of the source."""
        pages = self.file.query().allocated + self.source.query().allocated
        self.peak = max(self.peak, pages)

    def guest_reads(self) -> str:
        found = os.pread(self._memory, _PAGES * PAGE_SIZE, 0)
        pages = [found[at : at + PAGE_SIZE] for at in range(0, len(found), PAGE_SIZE)]
        names = [_NAMES[page] for page in pages]
        return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))

    def guest_writes(self) -> None:
        """Let the guest write to all present pages."""
        os.pwrite(self._memory, _DATA * _PAGES, 0)


class Way:
    """A way to fill a file: `begin`, each page with `page`, and `end`."""

    name = ""
    # Whether pages have to be private while the file is filled, if it keeps attributes.
    private = False

    def __init__(self, vmm: _Vmm) -> None:
        self._vmm: Final = vmm

    def begin(self) -> None:
        self._vmm.convert(private=self.private)

    def page(self, page: int) -> None:
        raise NotImplementedError

    def end(self) -> None:
        self._vmm.convert(private=True)


class Write(Way):
    """write(2)."""

    name = "write(2)"

    def page(self, page: int) -> None:
        os.pwrite(self._vmm.fd, _IMAGE, page * PAGE_SIZE)


class Populate(Way):
    """kvm_gmem_populate(), from host memory."""

    name = "populate from a source"
    private = True

    def begin(self) -> None:
        self._vmm.load_source()
        super().begin()

    def page(self, page: int) -> None:
        self._vmm.file.populate(page, 1, self._vmm.source, page)


class InPlace(Way):
    """Write to a mapping, convert, and tell the firmware: the source is absent."""

    name = "mapping, convert, populate"

    def page(self, page: int) -> None:
        self._vmm.window.write(page * PAGE_SIZE, _IMAGE)

    def end(self) -> None:
        super().end()
        self._vmm.file.populate(0, _PAGES)


class Mapping(InPlace):
    """Write to a mapping, and convert if there is something to convert."""

    name = "mapping, convert"

    def end(self) -> None:
        self._vmm.convert(private=True)


class PreFault(Way):
    """KVM_PRE_FAULT_MEMORY: pages are present, and zeros."""

    name = "pre-fault"
    private = True

    def page(self, page: int) -> None:
        if self._vmm.rules.by_range:
            with self._vmm.file.bind(0, _PAGES, lambda *_: None):
                self._get(page)
        else:
            self._get(page)

    def _get(self, page: int) -> None:
        pfn = self._vmm.file.get_pfn(page)[0]
        if self._vmm.rules.keeps_references:
            self._vmm.file.put_pfn(pfn)


_WAYS: Final[tuple[type[Way], ...]] = (Write, Populate, Mapping, InPlace, PreFault)


def _fill(way: Way, vmm: _Vmm, middle: Callable[[], object] | None = None) -> str:
    """Fill the file; returns the outcome, and the page that failed."""
    at = "begin"
    try:
        way.begin()
        for page in range(_PAGES):
            at = f"page {page}"
            if page == _MIDDLE and middle is not None:
                middle()
            way.page(page)
        at = "end"
        vmm.count()
        way.end()
    except OSError as exc:
        vmm.count()
        return f"{errnos.name(exc.errno)}, {at}"
    return "ok"


def _row(bench: Bench, kind: type[Way]) -> list[object]:
    """The outcomes of a way: once, again, and with a conversion in between."""
    with ExitStack() as stack:
        vmm = _Vmm(stack, bench)
        way = kind(vmm)
        outcome = _fill(way, vmm)
        if outcome != "ok":
            return [outcome, "-", "-", "-", "-"]
        first, peak = vmm.guest_reads(), vmm.peak
        vmm.guest_writes()
        again = _fill(way, vmm)
        then = vmm.guest_reads() if again == "ok" else again
    with ExitStack() as stack:
        vmm = _Vmm(stack, bench)
        sealed = "-"
        if vmm.rules.in_place:
            sealed = _fill(
                kind(vmm), vmm, lambda: vmm.convert(private=not kind.private)
            )
    return [outcome, first, peak, then, sealed]


def _run(lab: Lab) -> None:
    rows: list[list[object]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            rows += [[bench.semantics, kind.name, *_row(bench, kind)] for kind in _WAYS]
    lab.say(
        f"An image of {_PAGES} pages; and all pages change kind before page {_MIDDLE}"
    )
    head = "rules", "by", "outcome", "guest reads", "peak"
    lab.table([*head, "filled again", "converted"], rows)


EXPERIMENT: Final = Experiment(
    name="population",
    question="How does a guest get its first content, and what does each way cost?",
    run=_run,
    semantics=(
        "write-v7",
        "guest_memfd-7.2",
        "in-place-v8",
        f"{__file__}:WriteInPlace",
    ),
)
