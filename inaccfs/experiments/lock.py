"""Row 2: the events that a notifier gets if it registers during a punch."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from inaccfs.client import connect
from inaccfs.experiments import parts
from inaccfs.experiments.lab import GET_WAITS, HUGE_ONLY, Experiment
from inaccfs.kvm import VM

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from inaccfs.experiments.lab import Bench, Lab


class _Unchecked(parts.Watched):
    """The KVM of that time, whose count in_progress may become negative.

    kvm_mmu_invalidate_end() has had a KVM_BUG_ON() for this since 2023, and so has the
    simulated KVM.
    """

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[str] = []

    def begin(self, start: int, end: int) -> None:
        super().begin(start, end)
        self._calls.append("begin")

    def end(self) -> None:
        self.seq += 1
        self.in_progress -= 1
        self._calls.append("end")

    def covers(self, start: int, end: int) -> bool:
        """As in C, where any number except 0 is true."""
        there = start < self.range_end and self.range_start < end
        return self.in_progress != 0 and there

    def since(self) -> tuple[str, int]:
        """The calls since the last `since`, and in_progress now."""
        calls, self._calls = self._calls, []
        return " ".join(calls) or "nothing", self.in_progress


class _Guest:
    """A VM of one page, *page* of the file."""

    def __init__(self, stack: ExitStack, bench: Bench, fd: int, page: int) -> None:
        self._fd: Final = fd
        self._page: Final = page
        self.invalidation: Final = _Unchecked()
        # Its callbacks run in a separate thread.
        shim = stack.enter_context(connect(bench.mount.path))
        self.vm: Final = stack.enter_context(
            VM(
                shim,
                default_private=True,
                hooks=self._hook,
                invalidation=self.invalidation,
            )
        )
        self._vcpu: Final = self.vm.create_vcpu()
        # The next callback calls it once, before it zaps.
        self.act: Callable[[], object] | None = None

    def add_slot(self) -> None:
        parts.add_slot(self.vm, self._fd, self._page, 1)

    def read(self) -> bytes:
        return parts.read(self._vcpu, 0, 1)

    def _hook(self, point: str, _start: int, _end: int) -> None:
        self.invalidation.hook(point)
        if point == "invalidate:begin" and self.act is not None:
            act, self.act = self.act, None
            act()


class _World:
    """Two guests of one file. The second registers late."""

    def __init__(self, stack: ExitStack, bench: Bench) -> None:
        self._shim: Final = bench.shim
        self._fd: Final = parts.new_file(stack, bench.shim, "guests", 2)
        self.first: Final = _Guest(stack, bench, self._fd, 0)
        self.late: Final = _Guest(stack, bench, self._fd, 1)
        self._pool: Final = parts.threads(stack, 1)
        self.first.add_slot()

    def punch(self, act: Callable[[], Future[Any]]) -> None:
        """Punch both pages; the first guest's callback returns after *act*."""
        under_way: list[Future[Any]] = []
        self.first.act = lambda: under_way.append(act())
        parts.punch(self._fd, 2)
        for each in under_way:
            each.result(parts.PATIENCE)

    def join(self) -> Future[Any]:
        """Let the second guest add its slot; return once it waits for the list lock."""
        joining = self._pool.submit(self.late.add_slot)
        # query-stats counts a notifier as soon as it was requested.
        parts.until(lambda: self._shim.query_stats().notifiers == 2)
        return joining

    def touch(self) -> Future[Any]:
        """Let the second guest touch its page, after it has answered."""
        parts.until_last(self._shim)
        self.late.invalidation.forget()
        reading = self._pool.submit(self.late.read)
        self.late.invalidation.follow(reading)
        return reading


def _rows(bench: Bench) -> list[tuple[object, ...]]:
    rules = bench.shim.query_semantics()
    with ExitStack() as stack:
        world = _World(stack, bench)
        guests = {"first": world.first, "late": world.late}
        world.punch(world.join)
        once = [each.invalidation.since() for each in guests.values()]
        world.punch(world.touch)
        labels = bench.semantics, rules.list_locked
        return [
            (
                *(labels if name == "first" else ("", "")),
                *(name, *counted, *guest.invalidation.since()),
                len(guest.vm.stale_sptes()),
                "for ever" if guest.invalidation.covers(0, 1) else "no",
            )
            for (name, guest), counted in zip(guests.items(), once, strict=True)
        ]


def _run(lab: Lab) -> None:
    rows = []
    for semantics in lab.semantics:
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            rows += _rows(bench)
    head = "rules", "list locked", "VM", "1st punch", "count", "2nd punch", "count"
    lab.table([*head, "stale", "then retries"], rows)


EXPERIMENT: Final = Experiment(
    name="lock",
    question="Which events does a notifier get that is registered during a punch?",
    run=_run,
    semantics=("v8", "v9", "v10", "bind", "guest_memfd"),
    misfits=(HUGE_ONLY, GET_WAITS),
)
