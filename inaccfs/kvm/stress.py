"""`inaccfs kvm stress`: random accesses and punches, then a check of all invariants.

The work is done in rounds. After each round all threads have stopped and the invariants
are checked, before the next punch can hide a violation.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from inaccfs.kvm.oracle import STAMP_BYTES
from inaccfs.kvm.uapi import PAGE_SHIFT
from inaccfs.kvm.workload import Guest, Host
from inaccfs.kvm.world import DMA_PAGES, FILE_PAGES, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from inaccfs.client import Client
    from inaccfs.kvm.stats import Stats
    from inaccfs.kvm.workload import Actor

_ROUND_SECONDS: Final = 0.2
_PROGRESS_SECONDS: Final = 0.1

# How long a thread may take to stop: more than any punch takes.
_STOP_SECONDS: Final = 30.0

# How long the daemon may still list a file after its last close.
_GONE_SECONDS: Final = 2.0

# How many violations of one kind are shown; there may be thousands.
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a run."""

    seconds: float = 10.0
    vcpus: int = 4
    punchers: int = 2
    # Determines what each thread does; how they interleave is up to the scheduler.
    seed: int = 0


@dataclass(slots=True)
class Report:
    """The counts of a run, and the violated invariants."""

    plan: Plan
    # The name of the mount's semantics, and their rule `order`.
    semantics: str
    order: str
    seconds: float = 0.0
    rounds: int = 0
    # Whether it was interrupted.
    interrupted: bool = False
    # "accesses", "exits", "stale"; "punches", "conversions", "allocations", ...
    counts: Counter[str] = field(default_factory=Counter)
    stats: Stats | None = None
    # Each is an error of the shim or of KVM; there should be none.
    violations: list[str] = field(default_factory=list)

    @property
    def stale_uses(self) -> int:
        """Reads of a removed page through a stale mapping of its former frame.

        When invalidation comes after removal, this is a race of the semantics. Only
        reads of pages that a puncher watches are counted, so there are more.
        """
        return self.counts["stale"]


class Others(Protocol):
    """Other participants of a run, such as `inaccfs.iommu.stress.Devices`."""

    @property
    def notifiers(self) -> int:
        """How many notifiers they have registered."""

    def actors(self, world: World, dice: Iterator[random.Random]) -> list[Actor]:
        """Their threads, each with its own random generator."""

    def check(self) -> Iterator[str]:
        """Return violations. No thread runs meanwhile."""

    def close(self) -> None:
        """End their part, and release what they have."""


class _NoOthers:
    notifiers = 0

    def actors(self, _world: World, _dice: Iterator[random.Random]) -> list[Actor]:
        return []

    def check(self) -> Iterator[str]:
        return iter(())

    def close(self) -> None:
        pass


def _never() -> bool:
    return False


def run(
    shim: Client,
    plan: Plan,
    progress: Callable[[float, Counter[str]], object],
    interrupted: Callable[[], bool] = _never,
    others: Callable[[Client, int], Others] | None = None,
) -> Report:
    """Do as *plan* says, on a new file of the mount of *shim*.

    *progress* is called ten times a second, with the seconds so far and the counts.
    *interrupted* is called as often; once it returns True, the run ends early, with all
    checks made. *others* makes other participants from the client and the file's fd.

    Raises:
        OSError: the file or the VM cannot be made; `ControlError`.
    """
    semantics = shim.query_semantics()
    report = Report(plan, semantics.name, semantics.order)
    fd = shim.memfd_create("kvm-stress", size=(FILE_PAGES + DMA_PAGES) << PAGE_SHIFT)
    ino = os.fstat(fd).st_ino
    try:
        world = World(shim, fd)
        more = _NoOthers() if others is None else others(shim, fd)
        with _complaints(world):
            try:
                world.add_file()
                alive = _work(world, report, shim, ino, progress, interrupted, more)
            except BaseException:
                world.vm.close()
                raise
            if alive:
                _finish(world, report, shim, ino, more)
                more.close()
                world.handle.close()
    finally:
        os.close(fd)
    report.violations[:0] = _some(world.violations)
    if alive:
        report.violations += _left_behind(shim, ino)
    return report


class _Complaints(logging.Handler):
    """Records what the client can only log: refused puts, and hooks that raised."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world: Final = world

    def emit(self, record: logging.LogRecord) -> None:
        """Count any warning as a violation."""
        text = f"the client logged: {record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        self._world.violation(text)


@contextmanager
def _complaints(world: World) -> Iterator[None]:
    log, handler = logging.getLogger("inaccfs.client"), _Complaints(world)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _work(
    world: World,
    report: Report,
    shim: Client,
    ino: int,
    progress: Callable[[float, Counter[str]], object],
    interrupted: Callable[[], bool],
    others: Others,
) -> bool:
    """Run all rounds; return whether all threads have ended."""
    plan = report.plan
    actors: list[Actor] = [
        *(Guest(number, world, _dice(plan, 0, number)) for number in range(plan.vcpus)),
        *(
            Host(number, world, _dice(plan, 1, number))
            for number in range(plan.punchers)
        ),
        *others.actors(world, (_dice(plan, 2, number) for number in itertools.count())),
    ]
    stuck: list[str] = []
    begin = time.monotonic()
    while not world.violations:
        now = time.monotonic() - begin
        report.interrupted = interrupted()
        if now >= plan.seconds or report.interrupted:
            break
        stuck = _round(
            world, actors, begin, min(now + _ROUND_SECONDS, plan.seconds), progress
        )
        report.rounds += 1
        if stuck:
            world.violations.append(f"{', '.join(stuck)} did not come to an end")
            break
        world.violations.extend(_check(world, shim, ino, others))
    report.seconds = time.monotonic() - begin
    report.counts = _sum(actors)
    return not stuck


def _dice(plan: Plan, kind: int, number: int) -> random.Random:
    return random.Random(f"{plan.seed} {kind} {number}")


def _sum(actors: Sequence[Actor]) -> Counter[str]:
    return sum((actor.counts.copy() for actor in actors), Counter())


def _round(
    world: World,
    actors: Sequence[Actor],
    begin: float,
    until: float,
    progress: Callable[[float, Counter[str]], object],
) -> list[str]:
    """Run the actors once; return the names of those that did not stop."""
    world.stop.clear()
    threads = [
        # Daemon threads, so that one that hangs does not keep the process alive.
        threading.Thread(target=actor.run, name=actor.name, daemon=True)
        for actor in actors
    ]
    for thread in threads:
        thread.start()
    try:
        while (now := time.monotonic() - begin) < until:
            progress(now, _sum(actors))
            if world.stop.wait(min(_PROGRESS_SECONDS, until - now)):
                break
    finally:
        world.stop.set()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
    return [thread.name for thread in threads if thread.is_alive()]


# --- invariants -----------------------------------------------------------------------


def _check(world: World, shim: Client, ino: int, others: Others) -> Iterator[str]:
    """Violations of the invariants, while no thread runs."""
    for stale in world.vm.stale_sptes():
        now = "was removed" if stale.now is None else f"is in frame {stale.now:#x}"
        yield (
            f"gfn {stale.gfn:#x} is mapped to frame {stale.pfn:#x} at level "
            f"{stale.level}, but its page {now}"
        )
    stats = world.vm.stats
    balance = [
        made - zapped
        for made, zapped in zip(stats.installed, stats.zapped, strict=True)
    ]
    if balance != list(stats.mapped):
        there = list(stats.mapped)
        yield f"{balance} mappings were made and not zapped, {there} are there"
    if stats.in_progress:
        yield f"{stats.in_progress} invalidations have begun and not ended"
    for reference in shim.query_pins().references:
        if reference.pid == os.getpid() and reference.ino == ino:
            yield (
                f"file page {reference.offset}: {reference.references} references to "
                f"{reference.count} frames from {reference.pfn:#x} on were not put back"
            )
    yield from others.check()
    notifiers = _notifiers(shim, ino) - others.notifiers
    if notifiers != len(world.windows):
        yield f"{notifiers} notifiers for {len(world.windows)} slots"


def _notifiers(shim: Client, ino: int) -> int:
    ours = [each for each in shim.query_notifiers() if each.ino == ino]
    return sum(each.pid == os.getpid() for each in ours)


def _finish(
    world: World, report: Report, shim: Client, ino: int, others: Others
) -> None:
    """Read all pages once more; then take the VM down."""
    try:
        # A violation that is known already would only be found again.
        if not world.violations:
            report.violations += _some(list(_sweep(world)))
            report.violations += _some(list(_check(world, shim, ino, others)))
        report.stats = world.vm.stats
    finally:
        _close(world)


def _close(world: World) -> None:
    try:
        world.vm.close()
    except Exception:
        # Raised by a callback: it was logged, and so is among the violations.
        if not world.violations:
            raise


def _sweep(world: World) -> Iterator[str]:
    vcpu = world.vm.create_vcpu()
    for window in world.windows:
        # Map all pages at once; otherwise each read would fault.
        size = window.pages << PAGE_SHIFT
        world.vm.pre_fault_memory(window.gpa(0), size)
        for index in range(window.pages):
            private = world.vm.is_private(window.base_gfn + index)
            begin = world.oracle.begin_read()
            found = vcpu.read(window.gpa(index), STAMP_BYTES, private=private)
            verdict = world.oracle.end_read(
                begin,
                window.cell(index, private=private),
                int.from_bytes(found, "little"),
            )
            if verdict.wrong is not None:
                yield f"at the end: {verdict.wrong}"


def _left_behind(shim: Client, ino: int) -> list[str]:
    """The remains of a closed VM, and of its file."""
    # The kernel sends RELEASE for the last close asynchronously.
    deadline = time.monotonic() + _GONE_SECONDS
    while (found := list(_left(shim, ino))) and time.monotonic() < deadline:
        time.sleep(_PROGRESS_SECONDS / 10)
    return found


def _left(shim: Client, ino: int) -> Iterator[str]:
    if (notifiers := _notifiers(shim, ino)) != 0:
        yield f"{notifiers} notifiers are left of a VM that was closed"
    for file in shim.query_files():
        if file.ino == ino:
            yield (
                f"{file.name} is still there: {file.opens} opens, {file.referenced} "
                f"pages referenced, {file.notifiers} notifiers"
            )


def _some(violations: list[str]) -> list[str]:
    """The first violations, and how many more there are."""
    rest = len(violations) - _SHOWN
    return violations[:_SHOWN] + ([f"... and {rest} more"] if rest > 0 else [])
