"""How many populated pages a conversion of all memory to private destroys."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs.experiments.lab import Experiment
from inaccfs.experiments.parts import SIMULATED, add_slot
from inaccfs.kvm import VM, Vmm
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from inaccfs.experiments.lab import Bench, Lab
    from inaccfs.kvm.vm import Zap

_PAGES: Final = 64
_POPULATED: Final = _PAGES // 2
_KERNEL: Final = b"the guest's kernel"

_GUESTS: Final[tuple[tuple[Zap, str], ...]] = (
    ("keeps", "SEV-SNP"),
    ("destroys", "TDX, CCA"),
)


def _boot(bench: Bench, zap: Zap) -> tuple[int, int]:
    """Populate half of a guest, and make all of it private; counts destroyed pages."""
    with ExitStack() as stack:
        fd = bench.shim.memfd_create("guest", size=_PAGES * PAGE_SIZE)
        stack.callback(os.close, fd)
        file = stack.enter_context(bench.shim.file(fd))
        vm = stack.enter_context(VM(bench.shim, zap=zap))
        add_slot(vm, fd, 0, _PAGES)
        file.set_memory_attributes(0, _PAGES, False)
        window = file.shared_window()
        for page in range(_POPULATED):
            window.write(page * PAGE_SIZE, _KERNEL)
        # In place: what the VMM has written is the content.
        file.set_memory_attributes(0, _POPULATED, True)
        assert vm.populate(0, _POPULATED * PAGE_SIZE) == _POPULATED
        vm.pre_fault_memory(0, _POPULATED * PAGE_SIZE)
        Vmm(vm).convert(0, _PAGES * PAGE_SIZE, private=True)
        vcpu = vm.create_vcpu()
        intact = sum(
            vcpu.read(page * PAGE_SIZE, len(_KERNEL)) == _KERNEL
            for page in range(_POPULATED)
        )
        return vm.stats.destroyed, intact


def _run(lab: Lab) -> None:
    rows: list[tuple[object, ...]] = []
    for name in lab.semantics:
        with lab.bench(name, **SIMULATED) as bench:
            rules = bench.shim.query_semantics()
            if rules.population != "populate in place":
                lab.say(f"{bench.semantics}: nothing is populated in place")
                continue
            rows += [
                (
                    *(bench.semantics, rules.conversion_kinds, f"{zap} ({like})"),
                    *(_POPULATED, *_boot(bench, zap)),
                )
                for zap, like in _GUESTS
            ]
    if rows:
        lab.table(
            (
                *("semantics", "a conversion zaps", "a zap"),
                *("populated", "destroyed", "intact for the guest"),
            ),
            rows,
        )


EXPERIMENT: Final = Experiment(
    name="populate",
    question="Which populated pages does a conversion of all memory destroy?",
    run=_run,
    semantics=("in-place-v8", "in-place-next"),
)
