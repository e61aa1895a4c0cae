"""A reference from get-pfn, or the pfn alone: EAGAIN, kept frames, and stale uses."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs.experiments import parts
from inaccfs.experiments.lab import HUGE_ONLY, LOCKED, Experiment
from inaccfs.experiments.mapper import Mapper, convert, keeps_attributes
from inaccfs.semantics import InPlaceNext

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.experiments.lab import Bench, Lab
    from inaccfs.semantics.rules import References

_PAGES: Final = 8


class Counted(InPlaceNext):
    """in-place-next, but get-pfn leaves its caller a reference, as in Linux 7.2."""

    references: ClassVar[References] = "counted"  # type: ignore[assignment]


class _World:
    """A file of shared pages, a user of it, and another file that takes free frames."""

    def __init__(self, stack: ExitStack, bench: Bench, *, retries: bool) -> None:
        self.shim: Final = bench.shim
        self.fd: Final = parts.new_file(stack, bench.shim, "guest", _PAGES)
        self.file: Final = stack.enter_context(bench.shim.file(self.fd))
        self.converts: Final = keeps_attributes(bench)
        if self.converts:
            self.file.set_memory_attributes(0, _PAGES, False)
        self.neighbour: Final = parts.Neighbour(stack, bench.shim, 4 * _PAGES)
        # An action between get-pfn and the retry check of the next fault; it happens
        # once.
        self._act: Callable[[], object] | None = None
        self.user: Final = Mapper(
            stack, bench, self.fd, _PAGES, retries=retries, at=self._at
        )

    def _at(self, point: str, _page: int) -> None:
        if point == "got" and self._act is not None:
            act, self._act = self._act, None
            act()

    def fault(self, page: int, act: Callable[[], object]) -> int:
        """Fault a page in; *act* comes after get-pfn. Returns the frame."""
        self._act = act
        return self.user.fault(page)

    def punch(self) -> None:
        parts.punch(self.fd, _PAGES)


def _refused(world: _World) -> object:
    """How many of 8 conversions are refused, because a fault has a reference."""
    if not world.converts:
        return "-"
    refused = 0

    def act() -> None:
        nonlocal refused
        refused += convert(world.file, 0, _PAGES, private=True) is not None

    for page in range(_PAGES):
        world.fault(page, act)
        convert(world.file, 0, _PAGES, private=False)
    return refused


def _punched(world: _World) -> tuple[int, int, int]:
    """Punch the page of each fault, and let another file take a frame.

    Returns the frames that were kept; those that the other file had before the fault
    used them; and mappings, at the end, of frames that the other file has.
    """
    kept = early = late = 0

    def act() -> None:
        nonlocal kept, early
        world.punch()
        kept += parts.kept(world.shim)
        world.neighbour.take()
        early += world.user.got in world.neighbour.frames

    for page in range(_PAGES):
        # Do it only in the next fault, which has a frame.
        world.punch()
        parts.allocate(world.fd, _PAGES)
        world.fault(page, act)
        world.neighbour.take()
        mapping = world.user.mapped.get(page)
        late += mapping is not None and mapping.pfn in world.neighbour.frames
    return kept, early, late


def _row(bench: Bench, *, retries: bool) -> list[object]:
    with ExitStack() as stack:
        world = _World(stack, bench, retries=retries)
        refused = _refused(world)
        found = _punched(world)
        gives = world.user.rules.references
        retried = world.user.retried
        return [
            *(bench.semantics, gives, "retries" if retries else "does not"),
            *(refused, *found, retried),
        ]


def _run(lab: Lab) -> None:
    rows: list[list[object]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            rows += [_row(bench, retries=retries) for retries in (True, False)]
    lab.say(
        f"{_PAGES} conversions, and {_PAGES} punches, each while a fault has a page"
    )
    head = "rules", "references", "the user", "EAGAIN", "frames kept"
    stale = "reused before the check", "mapped and reused", "retried"
    lab.table([*head, *stale], rows)


EXPERIMENT: Final = Experiment(
    name="holding",
    question="What does a conversion gain if get-pfn takes no reference, and who pays?",
    run=_run,
    semantics=("guest_memfd-7.2", f"{__file__}:Counted", "in-place-next"),
    misfits=(HUGE_ONLY, LOCKED),
)
