"""Row 18: memory from different providers, under one interface and one user."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from inaccfs.experiments import parts
from inaccfs.experiments.lab import LOCKED, Experiment
from inaccfs.experiments.mapper import Mapper
from inaccfs.kvm.uapi import PAGE_SIZE, PG_LEVEL_2M, pages_of_level
from inaccfs.semantics import HugetlbRfc, InPlaceNext, InPlaceV8

if TYPE_CHECKING:
    from inaccfs.experiments.lab import Bench, Lab

_HUGE: Final = pages_of_level(PG_LEVEL_2M)
_PAGES: Final = 2 * _HUGE
# The memory of each provider: 16 MiB.
_SIZE: Final = "16m"


class Memory(InPlaceV8):
    """Pages of the kernel's own memory, one by one: the present guest_memfd."""


class Pool(HugetlbRfc):
    """A pool of huge pages, as hugetlbfs or a resource pool fd."""


class Device(InPlaceNext):
    """Memory of a device, whose owner may revoke it: faults allocate no page.

    As in Griffoul's provider there are no references: a frame is valid until revoke().
    """

    allocates: ClassVar[bool] = False


# Options for base pages, also for other rules.
_SMALL: Final = {"options": "simulated-order=0"}
_OPTIONS: Final[dict[str, dict[str, Any]]] = {"Pool": {}}


class _User:
    """A user with a slot of a new file, like a KVM. It does not know the provider."""

    def __init__(self, stack: ExitStack, bench: Bench, pages: int = _PAGES) -> None:
        self.fd: Final = bench.shim.memfd_create("guest", size=pages * PAGE_SIZE)
        stack.callback(os.close, self.fd)
        self.file: Final = stack.enter_context(bench.shim.file(self.fd))
        self.maps: Final = Mapper(stack, bench, self.fd, pages)

    def allocate(self, page: int, pages: int) -> None:
        parts.allocate(self.fd, pages, page)

    def punch(self, page: int, pages: int) -> None:
        parts.punch(self.fd, pages, page)

    @property
    def allocated(self) -> int:
        return self.file.query().allocated


def _touch(bench: Bench) -> dict[str, object]:
    """A vCPU touches a page; then a page is punched."""
    with ExitStack() as stack:
        user = _User(stack, bench)
        rows: dict[str, object] = {
            "a fault on a hole": parts.outcome(lambda: user.maps.fault(5))
        }
        if not user.allocated:
            user.allocate(0, _HUGE)
            rows["  so fallocate, and again"] = parts.outcome(
                lambda: user.maps.fault(5)
            )
        else:
            rows["  so fallocate, and again"] = "-"
        rows["  pages that it takes"] = user.allocated
        (extent,) = user.maps.file.get_pfns(5, 1)
        user.maps.put(extent.pfn)
        rows["  order"] = "2M" if 1 << extent.order == _HUGE else "4K"
        rows["a punch of one page"] = parts.outcome(lambda: user.punch(5, 1))
        rows["  pages left"] = user.allocated
    return rows


def _exhaust(bench: Bench) -> dict[str, object]:
    """Fill the provider."""
    with ExitStack() as stack:
        user = _User(stack, bench, 16 * _PAGES)
        page, outcome = 0, "ok"
        while outcome == "ok":
            outcome = parts.outcome(partial(user.allocate, page, _HUGE))
            page += _HUGE
        return {
            "pages in all": user.allocated,
            "  and then: fallocate": outcome,
            "  and then: a fault": parts.outcome(lambda: user.maps.fault(15 * _PAGES)),
        }


def _revoke(bench: Bench) -> dict[str, object]:
    """Revoke all pages, once while they are mapped, once while they are referenced."""
    rows: dict[str, object] = {}
    with ExitStack() as stack:
        user = _User(stack, bench)
        user.allocate(0, _PAGES)
        user.maps.touch(range(8))
        rows["revoked while mapped"] = parts.outcome(lambda: user.punch(0, _PAGES))
        rows["  events, mappings left"] = f"{user.maps.events}, {len(user.maps.mapped)}"
        rows["  pages left"] = user.allocated
        user.allocate(0, _PAGES)
        got = user.maps.file.get_pfns(0, 8)
        rows["revoked while got"] = parts.outcome(lambda: user.punch(0, _PAGES))
        rows["  pages left, frames kept"] = (
            f"{user.allocated}, {parts.kept(bench.shim)}"
        )
        if user.maps.rules.keeps_references:
            user.maps.file.put_pfns(got)
    return rows


def _run(lab: Lab) -> None:
    columns = []
    for semantics in lab.semantics:
        label = lab.label(semantics)
        options = _OPTIONS.get(label, _SMALL)
        with lab.bench(
            semantics, size=_SIZE, pfn_source="simulated", **options
        ) as bench:
            columns.append(
                [
                    row
                    for part in (_touch, _exhaust, _revoke)
                    for row in part(bench).items()
                ]
            )
    lab.columns(["", *map(lab.label, lab.semantics)], columns)


EXPERIMENT: Final = Experiment(
    name="provider",
    question="Which differences between providers of memory does a user notice?",
    run=_run,
    semantics=tuple(f"{__file__}:{name}" for name in ("Memory", "Pool", "Device")),
    misfits=(LOCKED,),
)
