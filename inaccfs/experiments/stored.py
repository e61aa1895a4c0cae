"""A conversion stores the attribute before, or after, the end of its bracket."""

from __future__ import annotations

from contextlib import ExitStack
from threading import Event
from typing import TYPE_CHECKING, Final

from inaccfs.client import connect
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.experiments.mapper import NOT_KEPT, Mapper, keeps_attributes
from inaccfs.semantics import HugetlbRfc

if TYPE_CHECKING:
    from concurrent.futures import Future

    from inaccfs.client.requests import Pfn
    from inaccfs.experiments.lab import Bench, Lab

# One huge page, for rules with that granule.
_PAGES: Final = 512
_ROUNDS: Final = 8
_PAGE: Final = 3


class NoWait(HugetlbRfc):
    """hugetlb-rfc, but get-pfn does not take the invalidate_lock, as in Linux 7.2."""

    get_waits = False


# When a fault reads the attribute with which it maps the page.
_READERS: Final = ("before get-pfn", "with the page", "before, and again")
_WINDOWS: Final = ("start", "end")


class _Race:
    """A mapper, and a notifier as a gate that stops a conversion for a fault."""

    def __init__(self, stack: ExitStack, bench: Bench, reader: str) -> None:
        self._fd: Final = parts.new_file(stack, bench.shim, "guest", _PAGES)
        self._file: Final = stack.enter_context(bench.shim.file(self._fd))
        # They have connections of their own: get-pfn waits, and queries must not wait
        # for it.
        self._asks: Final = stack.enter_context(
            stack.enter_context(connect(bench.mount.path)).file(self._fd)
        )
        self._reader: Final = reader
        self._found = False
        # Conversions whose fault started over at least once.
        self.retried = 0
        self._mapper: Final = Mapper(stack, bench, self._fd, _PAGES - 1, at=self._at)
        # Set when the fault has read the attribute, and when the conversion has ended.
        self._asked: Final = Event()
        self._over: Final = Event()
        self._pool: Final = parts.threads(stack, 1)
        self._gate: Final = stack.enter_context(connect(bench.mount.path))
        self._window: str | None = None
        self._faults: Final[list[Future[int]]] = []
        gate = stack.enter_context(self._gate.file(self._fd))
        # Its page is converted with the others.
        notifier = gate.bind(
            _PAGES - 1,
            _PAGES,
            lambda *_: self._open("start"),
            invalidate_end=lambda *_: self._open("end"),
        )
        stack.callback(notifier.unregister)

    def _at(self, point: str, _page: int) -> None:
        if point == "begun":
            if self._asked.is_set():
                # The fault started over: it must not get into another window.
                self._over.wait(parts.PATIENCE)
            self._found = self._private()
            self._asked.set()

    def _private(self) -> bool:
        ranges = self._asks.query_memory_attributes()
        return next(
            each.private
            for each in ranges
            if each.offset <= _PAGE < each.offset + each.count
        )

    def _kind(self, got: Pfn) -> bool | None:
        if self._reader == _READERS[0]:
            return self._found
        return got.private if self._reader == _READERS[1] else self._private()

    def _open(self, window: str) -> None:
        if window != self._window:
            return
        self._window = None
        # The mapper has handled the event, too; the daemon waits for this one.
        parts.until_last(self._gate)
        self._asked.clear()
        self._faults.append(self._pool.submit(self._mapper.fault, _PAGE, self._kind))
        self._asked.wait(parts.PATIENCE)
        if not self._mapper.rules.get_waits and window == "end":
            self._faults[-1].result(parts.PATIENCE)

    def count(self, window: str) -> int:
        """How many rounds with a fault in this window end with a wrong mapping."""
        wrong = 0
        for number in range(_ROUNDS):
            private = bool(number % 2)
            self._window = window
            before = self._mapper.retried
            self._over.clear()
            self._file.set_memory_attributes(0, _PAGES, private)
            self._over.set()
            self._faults.pop().result(parts.PATIENCE)
            self.retried += self._mapper.retried > before
            mapping = self._mapper.mapped.get(_PAGE)
            wrong += mapping is not None and mapping.private is not private
        return wrong


def _run(lab: Lab) -> None:
    rows: list[list[object]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, size="8m", pfn_source="simulated") as bench:
            if not keeps_attributes(bench):
                rows.append([bench.semantics, NOT_KEPT, "-", "-", "-", "-"])
                continue
            stored = bench.shim.query_semantics().stored
            for reader in _READERS:
                with ExitStack() as stack:
                    race = _Race(stack, bench, reader)
                    counts = [race.count(window) for window in _WINDOWS]
                    rows.append(
                        [bench.semantics, stored, reader, *counts, race.retried]
                    )
    lab.say(f"Mappings of the wrong kind, in {_ROUNDS} conversions with a fault each")
    head = "rules", "stored", "the fault reads it", "zapped", "ended", "retried"
    lab.table(head, rows)


EXPERIMENT: Final = Experiment(
    name="stored",
    question="May a conversion end its bracket before it stores the attribute?",
    run=_run,
    semantics=("in-place-v8", "in-place-next", "hugetlb-rfc", f"{__file__}:NoWait"),
    misfits=(),
)
