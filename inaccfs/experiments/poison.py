"""Row 12: a page is poisoned: which events, which calls wait, when is it dropped?"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.client import connect
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, MemoryFaultExit
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.client import Client
    from inaccfs.client.blockingfile import File
    from inaccfs.experiments.lab import Bench, Lab

# Two folios of 2 MiB: the guest has touched only one of them.
_PAGES: Final = 1024
_POISONED: Final = 3
_NEIGHBOUR: Final = 5
_UNTOUCHED: Final = 600

_CONTENT: Final = {bytes(PAGE_SIZE): "zeros", b"d" * PAGE_SIZE: "its data"}
_LEVELS: Final = {None: "nothing", 1: "4K", 2: "2M"}


def _outcome(call: Callable[[], object]) -> str:
    try:
        found = call()
    except MemoryFaultExit as exc:
        return f"exit, {errnos.name(exc.errno)}"
    except OSError as exc:
        return errnos.name(exc.errno)
    return found if isinstance(found, str) else "ok"


def _listen(bench: Bench, other: Client) -> tuple[str, list[str], bool]:
    """Report a page as poisoned: the reply, the events, whether the report waits."""
    heard: list[str] = []
    waiting: list[int | None] = []
    last = Event()

    def hear(name: str, start: int, end: int) -> None:
        heard.append(f"{name} {start}-{end}")
        waiting.extend(one.waiting for one in other.query_notifiers())
        if name != "START":
            last.set()

    with ExitStack() as stack:
        fd = bench.shim.memfd_create("listener", size=_PAGES * PAGE_SIZE)
        stack.callback(os.close, fd)
        parts.allocate(fd, _PAGES)
        file = stack.enter_context(bench.shim.file(fd))
        notifier = parts.listen(
            file,
            bench.shim.query_semantics(),
            0,
            _PAGES,
            invalidate_start=partial(hear, "START"),
            invalidate_end=partial(hear, "END"),
            error=partial(hear, "MEMORY_ERROR"),
        )
        stack.callback(notifier.unregister)
        reply = _outcome(lambda: file.memory_failure(_POISONED))
        if reply == "ok":
            # MEMORY_ERROR is sent without waiting for an answer.
            last.wait(parts.PATIENCE)
    return reply, heard, any(one is not None for one in waiting)


class _Guest:
    """A guest that has touched a folio, and a second client of its file."""

    def __init__(self, bench: Bench, other: Client, stack: ExitStack) -> None:
        size = _PAGES * PAGE_SIZE
        self._puts: Final = bench.shim.query_semantics().keeps_references
        self.fd: Final = bench.shim.memfd_create("guest", size=size)
        stack.callback(os.close, self.fd)
        parts.allocate(self.fd, _PAGES)
        self.other: Final[File] = stack.enter_context(other.file(self.fd))
        # Set when KVM has the event and has not zapped yet; when it may zap; when it
        # has.
        self.got_event: Final = Event()
        self.may_zap: Final = Event()
        self.zapped: Final = Event()
        self.vm: Final = stack.enter_context(
            VM(bench.shim, default_private=True, hooks=self._hook)
        )
        self.vm.set_user_memory_region(
            0, 0, size, private_fd=self.fd, flags=KVM_MEM_PRIVATE
        )
        self._vcpu: Final = self.vm.create_vcpu()
        for page in (_POISONED, _NEIGHBOUR):
            self._vcpu.write(page * PAGE_SIZE, b"d" * PAGE_SIZE)

    def _hook(self, point: str, _start: int, _end: int) -> None:
        if point == "invalidate:begin":
            self.got_event.set()
            self.may_zap.wait(parts.PATIENCE)
        elif point == "invalidate:end":
            self.zapped.set()

    def read(self, page: int) -> str:
        return _outcome(lambda: _CONTENT[self._vcpu.read(page * PAGE_SIZE, PAGE_SIZE)])

    def mapped(self, page: int) -> str:
        spte = self.vm.spte(page)
        return _LEVELS[None if spte is None else spte.level]

    def get_pfn(self, page: int) -> str:
        """Get and put a page with the other client; the outcome."""

        def get() -> str:
            pfn, order = self.other.get_pfn(page)
            if self._puts:
                self.other.put_pfn(pfn)
            return f"order {order}"

        return _outcome(get)

    def punch(self, page: int) -> None:
        parts.punch(self.fd, 1, page)

    def report(self, page: int) -> str:
        """Report a memory failure; the outcome, and the number of events to KVM."""
        before = self.vm.stats.invalidations
        self.zapped.clear()
        reply = _outcome(lambda: self.other.memory_failure(page))
        if reply != "ok":
            return reply
        self.zapped.wait(parts.PATIENCE)
        return f"ok, events: {self.vm.stats.invalidations - before}"


def _column(bench: Bench) -> list[tuple[str, str]]:
    with connect(bench.mount.path) as other, ExitStack() as stack:
        reply, heard, waited = _listen(bench, other)
        guest = _Guest(bench, other, stack)
        mapped, had = guest.mapped(_POISONED), guest.other.query().allocated
        window = _read_in_window(guest)
        rows = [
            ("memory-failure", reply),
            ("a notifier gets", ", ".join(heard) or "nothing"),
            ("the reporter waits for it", ("no", "yes")[waited] if heard else "-"),
            ("guest reads meanwhile", window),
            ("guest had mapped, and has", f"{mapped}, {guest.mapped(_POISONED)}"),
            ("guest reads the page", guest.read(_POISONED)),
            ("another's get-pfn", guest.get_pfn(_POISONED)),
            ("guest reads a neighbour", guest.read(_NEIGHBOUR)),
            ("and maps it with", guest.mapped(_NEIGHBOUR)),
            ("another's get-pfn of it", guest.get_pfn(_NEIGHBOUR)),
            ("so the page is mapped by", guest.mapped(_POISONED)),
            ("pages removed by that", str(had - guest.other.query().allocated)),
            ("reported again", guest.report(_POISONED)),
        ]
        guest.punch(_POISONED)
        return [
            *rows,
            ("punched: guest reads", guest.read(_POISONED)),
            ("and of the neighbour", guest.read(_NEIGHBOUR)),
            ("never fetched: reported", guest.report(_UNTOUCHED)),
            ("guest touches it", guest.read(_UNTOUCHED)),
        ]


def _read_in_window(guest: _Guest) -> str:
    """What a vCPU reads after KVM has got the event, if any, and before it zaps."""
    with ThreadPoolExecutor() as pool:
        report = pool.submit(guest.report, _POISONED)
        report.add_done_callback(lambda _: guest.got_event.set())
        guest.got_event.wait(parts.PATIENCE)
        found = guest.read(_POISONED)
        guest.may_zap.set()
    return found


def _run(lab: Lab) -> None:
    columns = []
    for semantics in lab.semantics:
        with lab.bench(semantics, size="64m", pfn_source="simulated") as bench:
            columns.append(_column(bench))
    lab.columns(["", *map(lab.label, lab.semantics)], columns)


EXPERIMENT: Final = Experiment(
    name="poison",
    question="When a page is poisoned, which events are sent, and when is it dropped?",
    run=_run,
    semantics=("v8", "v10", "bind", "guest_memfd"),
)
