"""Row 1: what a guest accesses if the event comes too late, too early, or in time."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from inaccfs.client import connect
from inaccfs.experiments import parts
from inaccfs.experiments.lab import HUGE_ONLY, IN_FILES, Experiment
from inaccfs.kvm import VM
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import V8

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from inaccfs.experiments.lab import Bench, Lab

_ROUNDS: Final = 8
_SECRET: Final = b"secret"


class Before(V8):
    """v8 with two lines exchanged, as it was proposed at first."""

    order = "before"


class _Found(NamedTuple):
    """The counts of all rounds of one window."""

    # Accesses to a frame that belonged to another file by then.
    used: int
    # Mappings, after the punch, of frames that the page does not have.
    stale: int
    # Rounds in which the fault was dropped.
    retried: int


class _Guest:
    """A guest of one page. The next page belongs to the gate, a second notifier."""

    def __init__(self, stack: ExitStack, bench: Bench, *, asks: bool) -> None:
        """With *asks* its KVM checks whether to retry."""
        shim, rules = bench.shim, bench.shim.query_semantics()
        # If get-pfn locks pages, a punch waits for a fault that has the page.
        self._locks: Final = rules.locks_pages
        self._fd: Final = parts.new_file(stack, shim, "guest", 2)
        self._neighbour: Final = parts.Neighbour(stack, shim, 8 * _ROUNDS)
        self._watched: Final = parts.Watched(asks=asks)
        self._vm: Final = stack.enter_context(
            VM(shim, default_private=True, hooks=self._hook, invalidation=self._watched)
        )
        parts.add_slot(self._vm, self._fd, 0, 1)
        self._vcpu: Final = self._vm.create_vcpu()
        # Its callbacks run in a thread of their own, beside those of the VM.
        self._other: Final = stack.enter_context(connect(bench.mount.path))
        file = stack.enter_context(self._other.file(self._fd))
        stack.enter_context(parts.listen(file, rules, 1, 2, self._gate))
        self._pool: Final = parts.threads(stack, 2)
        # The action for each point of the hooks; it happens once.
        self._acts: Final[dict[str, Callable[[], object]]] = {}
        # Calls in other threads that may still run.
        self._pending: Final[list[Future[Any]]] = []
        self._used = 0

    def count(self, point: str, act: Callable[[], object]) -> _Found:
        """Run all rounds of a window, which *act* keeps open at *point*."""
        self._used = stale = retried = 0
        for _ in range(_ROUNDS):
            parts.allocate(self._fd, 2)
            self._unmap()
            self._vcpu.write(0, _SECRET)
            self._watched.forget()
            self._acts[point] = act
            if point == "fault:before_install":
                # The act punches once this fault has its frame.
                self._unmap()
                self._read()
            else:
                parts.punch(self._fd, 2)
            self._acts.clear()
            while self._pending:
                self._pending.pop().result(parts.PATIENCE)
            retried += self._watched.dropped
            stale += len(self._vm.stale_sptes())
            self.use()
        return _Found(self._used, stale, retried)

    def _unmap(self) -> None:
        """Zap the guest's page; the file does not change."""
        for private in (False, True):
            self._vm.set_memory_attributes(0, PAGE_SIZE, private=private)

    def _read(self) -> bytes:
        return parts.read(self._vcpu, 0, len(_SECRET))

    # --- actions in the windows ------------------------------------------------

    def use(self) -> None:
        """Read the page, and count reads of a frame that the neighbour has."""
        self._neighbour.take()
        self._watched.forget()
        spte = self._vm.spte(0)
        found = self._pool.submit(self._read).result(parts.PATIENCE)
        faulted = bool(self._watched.seen)
        if spte is not None and not faulted and spte.pfn in self._neighbour.frames:
            # The data is not the guest's any more.
            self._used += found != _SECRET

    def fault(self) -> None:
        """Let the guest touch its page again, after it was zapped."""
        self._watched.forget()
        reading = self._pool.submit(self._read)
        self._pending.append(reading)
        self._watched.follow(reading)

    def punch(self) -> None:
        """Punch while a fault has its frame but has not installed it."""
        self._pending.append(self._pool.submit(parts.punch, self._fd, 2))
        if not self._locks:
            self._pending[-1].result(parts.PATIENCE)

    # --- points where windows are kept open -------------------------------------------

    def _hook(self, point: str, _start: int, _end: int) -> None:
        self._watched.hook(point)
        if point != "access" and (act := self._acts.pop(point, None)) is not None:
            act()

    def _gate(self, _start: int, _end: int) -> None:
        """The last callback of the event: KVM has zapped, and the daemon waits."""
        if (act := self._acts.pop("gate", None)) is not None:
            parts.until_last(self._other)
            act()


def _row(bench: Bench, *, asks: bool) -> tuple[object, ...]:
    rules = bench.shim.query_semantics()
    with ExitStack() as stack:
        guest = _Guest(stack, bench, asks=asks)
        windows = (
            guest.count("invalidate:begin", guest.use),
            guest.count("gate", guest.fault),
            guest.count("fault:before_install", guest.punch),
        )
    return (
        *(bench.semantics, rules.order, rules.list_locked),
        "retries" if asks else "does not",
        *(each.used for each in windows),
        sum(each.stale for each in windows),
        sum(each.retried for each in windows),
    )


def _run(lab: Lab) -> None:
    rows = []
    for semantics in lab.semantics:
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            rows += [_row(bench, asks=True), _row(bench, asks=False)]
    lab.say(f"Uses of a page that was freed, in {_ROUNDS} rounds of each window")
    head = "rules", "event", "list locked", "KVM"
    windows = "removed, not zapped", "zapped, not removed", "got, not installed"
    lab.table([*head, *windows, "stale", "retried"], rows)


EXPERIMENT: Final = Experiment(
    name="order",
    question="When must an event come, so that a guest never uses a freed page?",
    run=_run,
    semantics=("v8", f"{__file__}:Before", "v7", "v10", "bind", "guest_memfd"),
    misfits=(HUGE_ONLY, IN_FILES),
)
