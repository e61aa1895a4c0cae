"""Row 9: what punching a page does to its huge page, and for how long."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs.experiments import parts
from inaccfs.experiments.compaction import collapse
from inaccfs.experiments.lab import HUGE_ONLY, IN_FILES, Experiment
from inaccfs.experiments.parts import add_slot, new_file
from inaccfs.kvm import VM, Vmm
from inaccfs.kvm.uapi import PAGE_SIZE, PG_LEVEL_2M, pages_of_level

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.experiments.lab import Bench, Lab

_HUGE: Final = pages_of_level(PG_LEVEL_2M)
_SIZE: Final = _HUGE * PAGE_SIZE

# The page that is punched, and the guest's data there and in the page before it.
_PUNCHED: Final = 100
_SECRET: Final = b"secret"


class _Guest:
    """A VM of one huge page, which is allocated as a whole."""

    def __init__(self, stack: ExitStack, bench: Bench) -> None:
        self._shim: Final = bench.shim
        rules = self._shim.query_semantics()
        self.allocates: Final = rules.allocates
        self._puts: Final = rules.keeps_references
        self._fd: Final = new_file(stack, self._shim, "guest", _HUGE)
        # The ranges of the events to KVM since the last output.
        self._events: list[str] = []
        self.vm: Final = stack.enter_context(
            VM(self._shim, default_private=True, hooks=self._hook)
        )
        add_slot(self.vm, self._fd, 0, _HUGE)
        self._vcpu: Final = self.vm.create_vcpu()
        for page in (_PUNCHED - 1, _PUNCHED):
            self._vcpu.write(page * PAGE_SIZE, _SECRET)

    def _hook(self, point: str, start: int, end: int) -> None:
        if point == "invalidate:begin":
            pages = f"{start}" if end == start + 1 else f"{start}-{end - 1}"
            self._events.append(pages)

    # --- actions -----------------------------------------------------------------

    def allocate(self, start: int, count: int) -> None:
        parts.allocate(self._fd, count, start)

    def punch(self, start: int, count: int) -> None:
        parts.punch(self._fd, count, start)

    def read(self, page: int) -> str:
        found = self._vcpu.read(page * PAGE_SIZE, len(_SECRET))
        return found.decode() if any(found) else "zeros"

    def touch(self) -> None:
        for page in range(_HUGE):
            self.read(page)

    def touch_anew(self) -> None:
        """Let KVM zap all pages without an event, and the guest touch all of them."""
        for private in (False, True):
            self.vm.set_memory_attributes(0, _SIZE, private=private)
        self.touch()

    def collapse(self) -> str:
        return collapse(self._shim, self._fd)

    # --- observations -----------------------------------------------------------------

    @property
    def allocated(self) -> int:
        return os.fstat(self._fd).st_blocks * 512 // PAGE_SIZE

    def folio(self) -> str:
        """The size of page 0's folio, not counting holes.

        It calls get-pfn again, as the daemon does not know which pages have moved.
        """
        if not self.allocated:
            return "-"
        with self._shim.file(self._fd) as file:
            found = file.get_pfns(0, _HUGE if self.allocated == _HUGE else 1)
            for extent in found if self._puts else ():
                file.put_pfn(extent.pfn, extent.count)
        return "2M" if 1 << found[0].order == _HUGE else "smaller"

    def events(self) -> str:
        events, self._events = self._events, []
        return ", ".join(events) or "-"

    def there(self) -> tuple[int, str, str]:
        """The allocated memory, page 0's folio, and the level of its mapping."""
        spte = self.vm.spte(0)
        level = "-" if spte is None else "2M" if spte.level == PG_LEVEL_2M else "4K"
        return self.allocated, self.folio(), level


# --- a page is punched ----------------------------------------------------------------

_STEPS: Final[tuple[tuple[str, Callable[[_Guest], str | None]], ...]] = (
    (f"touch page {_PUNCHED - 1}", lambda guest: guest.read(_PUNCHED - 1)),
    (f"punch page {_PUNCHED}", lambda guest: guest.punch(_PUNCHED, 1)),
    (f"touch page {_PUNCHED - 1}", lambda guest: guest.read(_PUNCHED - 1)),
    (f"allocate page {_PUNCHED}", lambda guest: guest.allocate(_PUNCHED, 1)),
    ("touch all", _Guest.touch),
    ("zap all, touch all", _Guest.touch_anew),
    ("MADV_COLLAPSE", _Guest.collapse),
    ("touch all", _Guest.touch),
    ("zap all, touch all", _Guest.touch_anew),
    ("punch all", lambda guest: guest.punch(0, _HUGE)),
    ("allocate all", lambda guest: guest.allocate(0, _HUGE)),
    ("touch all", _Guest.touch),
)


def _punched(bench: Bench) -> Iterator[list[object]]:
    with ExitStack() as stack:
        guest = _Guest(stack, bench)
        for name, step in _STEPS:
            outcome = step(guest) or ""
            events, allocated, folio = guest.events(), guest.allocated, guest.folio()
            small, huge, _ = guest.vm.stats.mapped
            stale = len(guest.vm.stale_sptes())
            yield [name, outcome, events, allocated, folio, huge, small, stale]


# --- a page is converted, and comes back ----------------------------------------------


class _Deferring:
    """Punches a huge page once all of it is shared: Roth's bitmap, kept by the VMM."""

    def __init__(self, guest: _Guest) -> None:
        self._guest: Final = guest
        self._shared: Final[set[int]] = set()

    def convert(self, gpa: int, size: int, *, private: bool) -> None:
        self._guest.vm.set_memory_attributes(gpa, size, private=private)
        (self._shared.discard if private else self._shared.add)(gpa)
        if len(self._shared) == _HUGE:
            self._guest.punch(0, _HUGE)
            self._shared.clear()


def _converted(bench: Bench, *, defers: bool) -> Iterator[list[object]]:
    with ExitStack() as stack:
        guest = _Guest(stack, bench)
        convert = _Deferring(guest).convert if defers else Vmm(guest.vm).convert
        policy = "deferred" if defers else "at once"
        convert(_PUNCHED * PAGE_SIZE, PAGE_SIZE, private=False)
        guest.read(0)
        yield [policy, "one page to shared", *guest.there(), "-"]
        convert(_PUNCHED * PAGE_SIZE, PAGE_SIZE, private=True)
        if not guest.allocates:
            guest.allocate(_PUNCHED, 1)
        content = guest.read(_PUNCHED)
        yield [policy, "and back", *guest.there(), content]
        for page in range(_HUGE):
            convert(page * PAGE_SIZE, PAGE_SIZE, private=False)
        yield [policy, "all to shared, one by one", *guest.there(), "-"]


def _converted_all(bench: Bench) -> Iterator[list[object]]:
    yield from _converted(bench, defers=False)
    yield from _converted(bench, defers=True)


def _undisturbed(
    bench: Bench, part: Callable[[Bench], Iterator[list[object]]]
) -> list[list[object]]:
    """The rows of a part, once two runs give the same.

    If memory is compacted meanwhile, pages migrate, even those whose pins a punch drops
    for a moment. That sends events, and a folio under migration cannot be split.
    """
    rows = list(part(bench))
    for _ in range(5):
        before, rows = rows, list(part(bench))
        if rows == before:
            break
    return rows


def _run(lab: Lab) -> None:
    before: list[list[object]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, size="64m", huge="always") as bench:
            pins = bench.shim.query_status().pinning.split(" ")[0]
            lab.say("\n" * bool(before) + f"{bench.semantics}, pages pinned by: {pins}")
            head = ["", "", "events", "allocated", "folio", "by 2M", "by 4K", "stale"]
            lab.table(head, _undisturbed(bench, _punched))
            rows = _undisturbed(bench, _converted_all)
        if rows != before:
            lab.say()
            head = ["the VMM punches", "", "allocated", "folio", "page 0"]
            lab.table([*head, f"in page {_PUNCHED}"], rows)
        before = rows


EXPERIMENT: Final = Experiment(
    name="folios",
    question="What does punching a page do to the huge page that it was part of?",
    run=_run,
    semantics=("v8", "v9"),
    misfits=(HUGE_ONLY, IN_FILES),
)
