"""Which pages a device that cannot fault uses after a change, by its IOMMU's rules."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.experiments.lab import HUGE_ONLY, LOCKED, Experiment
from inaccfs.experiments.parts import SIMULATED, add_slot, punch
from inaccfs.explore.proposals import Dma, DmaPunch
from inaccfs.explore.search import Case, Limits, explore
from inaccfs.iommu import GETS_EVENTS, WAYS, Iommu
from inaccfs.kvm import VM
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import load

if TYPE_CHECKING:
    from inaccfs.experiments.lab import Bench, Lab
    from inaccfs.explore.scenario import Scenario
    from inaccfs.iommu import Learns

_DATA: Final = b"data"
_NAMES: Final = {_DATA: "its data", bytes(4): "zeros", b"\xff" * 4: "nothing"}


def _found(scenario: type[Scenario], semantics: str, learns: Learns) -> str:
    """The kinds of violations that a search of all schedules finds."""
    rules = load.load(semantics)
    if scenario is Dma and not rules.in_place:
        return "-"
    kind = type(scenario.__name__, (scenario,), {"learns": learns})
    outcome = explore(Case(kind, rules), Limits(seconds=None))
    return ", ".join(sorted(outcome.kinds)) or "clean"


def _beside(bench: Bench, learns: Learns) -> str:
    """Whether an IOMMU can map a page that a VM has in a slot."""
    with ExitStack() as stack:
        fd = bench.shim.memfd_create("dma", size=PAGE_SIZE)
        stack.callback(os.close, fd)
        vm = stack.enter_context(VM(bench.shim))
        add_slot(vm, fd, 0, 1)
        iommu = stack.enter_context(Iommu(bench.shim, learns=learns))
        if bench.shim.query_semantics().in_place:
            with bench.shim.file(fd) as file:
                file.set_memory_attributes(0, 1, False)
        try:
            iommu.map_file(fd, 0, PAGE_SIZE)
        except OSError as exc:
            return errnos.name(exc.errno)
        return "yes"


def _after(
    bench: Bench, learns: Learns, *, converts: bool
) -> tuple[str, str, str, int] | None:
    """Change a page; what a device reads then, and after the page was mapped again."""
    with ExitStack() as stack:
        fd = bench.shim.memfd_create("dma", size=PAGE_SIZE)
        stack.callback(os.close, fd)
        rules = bench.shim.query_semantics()
        file = stack.enter_context(bench.shim.file(fd))
        if converts and not rules.in_place:
            return None
        if rules.in_place:
            file.set_memory_attributes(0, 1, False)
        if learns not in GETS_EVENTS:
            add_slot(stack.enter_context(VM(bench.shim)), fd, 0, 1)
        iommu = stack.enter_context(Iommu(bench.shim, learns=learns))
        iommu.map_file(fd, 0, PAGE_SIZE)
        device = iommu.create_device()
        device.write(0, _DATA)
        change = "done"
        try:
            if converts:
                file.set_memory_attributes(0, 1, True)
            else:
                punch(fd, 1)
        except OSError as exc:
            change = errnos.name(exc.errno)
        then = _NAMES[device.read(0, 4)]
        iommu.restore()
        again = _NAMES[device.read(0, 4)]
        return change, then, again, iommu.stats.uses_after_change


def _run(lab: Lab) -> None:
    lab.say("All schedules of a device's two accesses, one change, and a restore():")
    lab.table(
        ("semantics", "the IOMMU learns by", "converted", "punched"),
        [
            (
                *(lab.label(name), learns),
                *(_found(kind, name, learns) for kind in (Dma, DmaPunch)),
            )
            for name in lab.semantics
            for learns in WAYS
        ],
    )
    rows: list[tuple[object, ...]] = []
    users: list[tuple[str, ...]] = []
    for name in lab.semantics:
        with lab.bench(name, **SIMULATED) as bench:
            users.append(
                (bench.semantics, *(_beside(bench, learns) for learns in WAYS))
            )
            for converts, what in ((True, "conversion"), (False, "punch")):
                for learns in WAYS:
                    seen = _after(bench, learns, converts=converts)
                    if seen is not None:
                        rows.append((bench.semantics, what, learns, *seen))
    lab.say("\nOn a mount, one after the other:")
    lab.table(
        (
            *("semantics", "change", "the IOMMU learns by", "change is"),
            *("device reads", "after restore()", "uses after change"),
        ),
        rows,
    )
    lab.say("\nCan an IOMMU map a page that a VM has in a slot?")
    lab.table(("semantics", *WAYS), users)


EXPERIMENT: Final = Experiment(
    name="dma",
    question="Which events does an IOMMU need, so that no device uses a changed page?",
    run=_run,
    semantics=("v8", "guest_memfd", "in-place-v8", "in-place-next"),
    misfits=(HUGE_ONLY, LOCKED),
)
