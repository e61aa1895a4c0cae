"""Row 5: a conversion of pinned pages: EAGAIN, its offset, and what retrying costs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs.client import connect
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.experiments.mapper import NOT_KEPT, Mapper, convert, keeps_attributes
from inaccfs.semantics import InPlaceV8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.client import File
    from inaccfs.control.messages import Extent
    from inaccfs.experiments.lab import Bench, Lab

_PAGES: Final = 64
_PINNED: Final = (5, 20, 21, 40)
# How long pins last, in calls of set-memory-attributes: the clock of this experiment.
_LASTS: Final = (4, 100)
_MOST: Final = 10_000


class Unchecked(InPlaceV8):
    """A conversion that does not look for pins."""

    pin_check = "none"


class _Host:
    """A VMM that has mapped all pages and pinned some, and converts them."""

    def __init__(self, stack: ExitStack, bench: Bench, lasts: int) -> None:
        self._fd: Final = parts.new_file(stack, bench.shim, "guest", _PAGES)
        self._file: Final = stack.enter_context(bench.shim.file(self._fd))
        self._file.set_memory_attributes(0, _PAGES, False)
        self.guest: Final = Mapper(stack, bench, self._fd, _PAGES)
        self.guest.touch(range(_PAGES))
        pinner = stack.enter_context(connect(bench.mount.path))
        self._pinner: Final[File] = stack.enter_context(pinner.file(self._fd))
        self._pins: list[Extent] = [
            pin for page in _PINNED for pin in self._pinner.pin_pages(page)
        ]
        self._lasts: Final = lasts
        self.calls = self.refused = 0
        # How many user mappings calls have unmapped in vain: v8 unmaps before it checks
        # for pins, and then these pages stay shared. The host touches all shared pages
        # between two calls.
        self.refaults = 0
        # Pages that were private while they were pinned.
        self.exposed = 0
        # After how many calls all pages except the pinned ones were private.
        self.rest_after: int | None = None

    def convert(self, start: int, end: int) -> int | None:
        """Make one call; returns None, or the page of EAGAIN."""
        if self.calls == self._lasts:
            self._pinner.unpin_pages(self._pins)
            self._pins = []
        self.calls += 1
        assert self.calls < _MOST, "the pins never go"
        found = convert(self._file, start, end - start, private=True)
        if found is not None:
            self.refused += 1
            self.refaults += end - start
        private = self._private()
        if self.rest_after is None and len(private) >= _PAGES - len(_PINNED):
            self.rest_after = self.calls
        if self._pins:
            self.exposed = len(private.intersection(_PINNED))
        return found

    def _private(self) -> set[int]:
        return {
            page
            for each in self._file.query_memory_attributes()
            for page in range(each.offset, each.offset + each.count)
            if each.private
        }


def _bulk(host: _Host) -> None:
    """Convert the whole range, again and again: private pages in it do no harm."""
    while host.convert(0, _PAGES) is not None:
        pass


def _by_page(host: _Host) -> None:
    """Convert page after page; then those that were refused, in turn."""
    left = list(range(_PAGES))
    while left:
        left = [page for page in left if host.convert(page, page + 1) is not None]


def _by_offset(host: _Host) -> None:
    """Convert up to error_offset, then from the next page; then the rest, in turn."""
    left = [(0, _PAGES)]
    while left:
        left = [part for start, end in left for part in _split(host, start, end)]


def _split(host: _Host, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        page = host.convert(start, end)
        if page is None:
            return
        if page > start:
            # No page of this part is pinned.
            host.convert(start, page)
        yield page, page + 1
        start = page + 1


def _by_halves(host: _Host) -> None:
    """Without error_offset: convert halves of refused ranges; then the rest."""
    left = [(0, _PAGES)]
    while left:
        left = [part for start, end in left for part in _halve(host, start, end)]


def _halve(host: _Host, start: int, end: int) -> Iterator[tuple[int, int]]:
    if host.convert(start, end) is None:
        return
    if end - start == 1:
        yield start, end
        return
    middle = (start + end) // 2
    yield from _halve(host, start, middle)
    yield from _halve(host, middle, end)


_POLICIES: Final[tuple[tuple[str, Callable[[_Host], None]], ...]] = (
    ("bulk", _bulk),
    ("page by page", _by_page),
    ("by halves", _by_halves),
    ("by error_offset", _by_offset),
)


def _rows(bench: Bench) -> Iterator[list[object]]:
    for lasts in _LASTS:
        for name, policy in _POLICIES:
            with ExitStack() as stack:
                host = _Host(stack, bench, lasts)
                policy(host)
                guest = host.guest
                yield [
                    *(bench.semantics, lasts, name, host.calls, host.refused),
                    *(host.rest_after, host.refaults, guest.events, guest.zapped),
                    host.exposed,
                ]


def _run(lab: Lab) -> None:
    rows: list[list[object]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            if keeps_attributes(bench):
                rows += _rows(bench)
            else:
                rows.append([bench.semantics, NOT_KEPT, *["-"] * 8])
    pages = ", ".join(map(str, _PINNED))
    lab.say(f"{_PAGES} shared pages are made private; pinned: {pages}")
    head = "rules", "pins last", "the VMM retries", "calls", "EAGAIN"
    costs = "others done at", "refaults", "events", "zapped", "exposed"
    lab.table([*head, *costs], rows)


EXPERIMENT: Final = Experiment(
    name="pins",
    question="Pages are pinned, so a conversion is EAGAIN: how should a VMM go on?",
    run=_run,
    semantics=("in-place-v8", "in-place-next", f"{__file__}:Unchecked"),
)
