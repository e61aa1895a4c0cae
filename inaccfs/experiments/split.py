"""Huge pages that split at the first shared page, and merge when all are private."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.experiments.mapper import NOT_KEPT, Mapper, convert, keeps_attributes
from inaccfs.kvm.uapi import PG_LEVEL_2M, pages_of_level
from inaccfs.semantics import InPlaceV8

if TYPE_CHECKING:
    from inaccfs.experiments.lab import Bench, Lab

_HUGE: Final = pages_of_level(PG_LEVEL_2M)
_FOLIOS: Final = 16
_PAGES: Final = _FOLIOS * _HUGE
_STEPS: Final = (1, 4, 16, 64, 256)
# A page of the huge page in the middle.
_PINNED: Final = _FOLIOS // 2 * _HUGE + 7


class Whole(InPlaceV8):
    """in-place-v8 with huge pages: a conversion is all or nothing; punches succeed."""

    granule = "huge page"


class _Guest:
    """A guest of 16 huge pages, all of them private and allocated."""

    def __init__(self, stack: ExitStack, bench: Bench) -> None:
        self.fd: Final = parts.new_file(stack, bench.shim, "guest", _PAGES)
        self.file: Final = stack.enter_context(bench.shim.file(self.fd))
        self.user: Final = Mapper(stack, bench, self.fd, _PAGES)

    def convert(self, page: int, count: int = 1, *, private: bool) -> int | None:
        return convert(self.file, page, count, private=private)

    @property
    def huge(self) -> str:
        """How much of the memory get-pfn reports as huge."""
        extents = self.user.file.get_pfns(0, _PAGES)
        if self.user.rules.keeps_references:
            self.user.file.put_pfns(extents)
        pages = sum(each.count for each in extents if 1 << each.order >= _HUGE)
        return f"{pages * 100 // _PAGES}%"

    @property
    def shared(self) -> int:
        ranges = self.file.query_memory_attributes()
        return sum(each.count for each in ranges if not each.private)


def _random(stack: ExitStack, bench: Bench, *, near: bool) -> list[str]:
    """Convert pages to shared, and back in another order; returns how much is huge."""
    guest = _Guest(stack, bench)
    numbers = random.Random(14)
    pages = list(range(_STEPS[-1]))
    if not near:
        pages = numbers.sample(range(_PAGES), _STEPS[-1])
    found = [guest.huge]
    for number, page in enumerate(pages, 1):
        guest.convert(page, private=False)
        if number in _STEPS:
            found.append(guest.huge)
    numbers.shuffle(pages)
    for left, page in reversed(list(enumerate(pages))):
        guest.convert(page, private=True)
        if left in (*_STEPS[:-1], 0):
            found.append(guest.huge)
    return found


def _pinned(stack: ExitStack, bench: Bench) -> list[tuple[str, object]]:
    """With a pin in the middle, convert and punch everything."""
    guest = _Guest(stack, bench)
    guest.convert(0, _PAGES, private=False)
    guest.user.touch((0, _PINNED, _PAGES - 1))
    pins = guest.file.pin_pages(_PINNED)
    rows: list[tuple[str, object]] = []

    def event(name: str, outcome: object) -> None:
        events, zapped = guest.user.events, guest.user.zapped
        guest.user.events = guest.user.zapped = 0
        rows.append((name, f"{outcome}, {events} events, {zapped} zapped"))

    guest.user.events = 0
    page = guest.convert(0, _PAGES, private=True)
    event("to private", "ok" if page is None else f"EAGAIN at {page}")
    rows.append(("  private by then", _PAGES - guest.shared))
    rows.append(("  huge by then", guest.huge))
    guest.user.touch((0, _PINNED, _PAGES - 1))
    event("punch of all", _punch(guest))
    rows.append(("  allocated by then", guest.file.query().allocated))
    guest.file.unpin_pages(pins)
    event("unpinned: punch of all", _punch(guest))
    rows.append(("  allocated by then", guest.file.query().allocated))
    return rows


def _punch(guest: _Guest) -> str:
    return parts.outcome(lambda: parts.punch(guest.fd, _PAGES))


def _run(lab: Lab) -> None:
    scattered: list[list[object]] = []
    columns: list[list[tuple[str, object]]] = []
    labels = []
    options = {"size": "64m", "pfn_source": "simulated"}
    for semantics in lab.semantics:
        with lab.bench(semantics, **options) as bench:
            if not keeps_attributes(bench):
                lab.say(f"{bench.semantics}: {NOT_KEPT}")
                continue
            labels.append(bench.semantics)
            for near in (False, True):
                with ExitStack() as stack:
                    found = _random(stack, bench, near=near)
                where = "in a row" if near else "at random"
                scattered.append([bench.semantics, where, *found])
            with ExitStack() as stack:
                columns.append(_pinned(stack, bench))
    if not labels:
        return
    back = [f"{step} left" for step in reversed(_STEPS[:-1])]
    lab.say(f"Huge, of {_FOLIOS} huge pages, after conversions of small ones to shared")
    head = "rules", "which", "none", *map(str, _STEPS), *back, "none"
    lab.table(head, scattered)
    lab.say(f"\nAll pages are shared, and page {_PINNED} is pinned")
    lab.columns(["", *labels], columns)


EXPERIMENT: Final = Experiment(
    name="split",
    question="How much of a file stays huge under conversions, and what can fail?",
    run=_run,
    semantics=("hugetlb-rfc", f"{__file__}:Whole"),
    misfits=(),
)
