"""Row 8: which changes to frames a user can undo, given what an event says."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs.client import connect
from inaccfs.experiments import parts
from inaccfs.experiments.lab import GET_WAITS, HUGE_ONLY, Experiment
from inaccfs.kvm import VM
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import V8, V10

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inaccfs.client import Client, Notifier
    from inaccfs.control.messages import Extent
    from inaccfs.experiments.lab import Bench, Lab

# The first half is punched; the second half of that was zapped before.
_PAGES: Final = 32
_PUNCHED: Final = _PAGES // 2
_ZAPPED: Final = range(_PUNCHED // 2, _PUNCHED)


class FramesLate(V8):
    """Its events list the frames that were removed."""

    tells_frames = True


class Frames(V10):
    """Michael Roth's invalidate(start, end, page, order), before they go."""

    tells_frames = True


@dataclass(eq=False)
class _User:
    """Marks each frame that it gets as its guest's, as SNP does in its RMP.

    A mark must be removed before another file gets the frame. This user keeps no map of
    its own, and relies on the frames in the event.
    """

    name: ClassVar[str] = "frames of the event"

    shim: Client
    fd: int
    # The user of another file, which gets free frames.
    neighbour: parts.Neighbour
    # The frames that are marked.
    marked: set[int] = field(default_factory=set)
    # How many marks were removed before another file got the frame, and after.
    in_time: int = 0
    late: int = 0

    def __post_init__(self) -> None:
        self.rules = self.shim.query_semantics()
        self.file = self.shim.file(self.fd)

    def begin(self) -> None:
        """Get all pages; KVM keeps no reference to what it maps."""
        self.notifier: Notifier = parts.listen(
            self.file,
            self.rules,
            0,
            _PAGES,
            self._invalidate,
            with_frames=True,
        )
        for page in range(_PAGES):
            found = self.file.get_pfns(page, 1)
            self.mark(page, found[0].pfn)
            self.put(found)

    def put(self, found: Iterable[Extent]) -> None:
        for extent in found if self.rules.keeps_references else ():
            self.file.put_pfn(extent.pfn, extent.count)

    def mark(self, page: int, frame: int) -> None:
        self.marked.add(frame)

    def zap(self) -> None:
        """Zap some pages, which stay allocated."""

    def _invalidate(self, start: int, end: int, frames: Sequence[Extent]) -> None:
        unit = PAGE_SIZE if self.rules.unit == "bytes" else 1
        self.unmark(start // unit, end // unit, frames)

    def unmark(self, start: int, end: int, frames: Sequence[Extent]) -> None:
        """The callback: these pages will be, or were, removed."""
        self.neighbour.take(_PUNCHED)
        found = self.marked.intersection(self.find(start, end, frames))
        self.marked -= found
        late = len(found & self.neighbour.frames)
        self.late += late
        self.in_time += len(found) - late

    def find(self, start: int, end: int, frames: Sequence[Extent]) -> Iterable[int]:
        """The frames of pages, as far as this user can find them."""
        return parts.frames(frames)

    def end(self) -> int:
        """Unmark the frames that can be found, and unregister; return their number."""
        found = self.marked.intersection(self.find(0, _PAGES, ()))
        self.marked -= found
        self.close()
        return len(found)

    def close(self) -> None:
        self.notifier.unregister()


@dataclass(eq=False)
class _Mapping(_User):
    """Remembers the frame of each page while it is marked."""

    name = "range, own map"

    places: dict[int, int] = field(default_factory=dict)

    def mark(self, page: int, frame: int) -> None:
        super().mark(page, frame)
        self.places[page] = frame

    def find(self, start: int, end: int, frames: Sequence[Extent]) -> Iterable[int]:
        pages = [page for page in self.places if start <= page < end]
        return [self.places.pop(page) for page in pages]


class _Asking(_User):
    """Calls get-pfn for the pages."""

    name = "range, get-pfn"

    def find(self, start: int, end: int, frames: Sequence[Extent]) -> Iterable[int]:
        try:
            found = self.file.get_pfns(start, end - start)
        except OSError:
            # The punch has locked the page, or it is a hole by now.
            return ()
        self.put(found)
        return parts.frames(found)


class _Tables(_User):
    """KVM, whose only map is its page table, which lacks pages that were zapped."""

    name = "range, page table"

    def begin(self) -> None:
        self.vm = VM(self.shim, default_private=True, hooks=self._hook)
        parts.add_slot(self.vm, self.fd, 0, _PAGES)
        vcpu = self.vm.create_vcpu()
        for page in range(_PAGES):
            vcpu.read(page * PAGE_SIZE, 1)
        for page, spte in self.vm.sptes():
            self.mark(page, spte.pfn)
        # KVM's puts do not wait; after this query they are done.
        self.file.query()

    def zap(self) -> None:
        for private in (False, True):
            self.vm.set_memory_attributes(
                _ZAPPED.start * PAGE_SIZE, len(_ZAPPED) * PAGE_SIZE, private=private
            )

    def _hook(self, point: str, start: int, end: int) -> None:
        if point == "invalidate:begin":
            self.unmark(start, end, ())

    def find(self, start: int, end: int, frames: Sequence[Extent]) -> Iterable[int]:
        entries = (self.vm.spte(page) for page in range(start, end))
        return [spte.pfn for spte in entries if spte is not None]

    def close(self) -> None:
        self.vm.close()


_USERS: Final = (_User, _Mapping, _Asking, _Tables)


def _row(bench: Bench, make: type[_User]) -> tuple[object, ...]:
    with ExitStack() as stack:
        # Each has its own connection, with which its references end.
        one, other = (stack.enter_context(connect(bench.mount.path)) for _ in "ab")
        neighbour = parts.Neighbour(stack, other, 8 * _PAGES)
        with ExitStack() as life:
            fd = parts.new_file(life, one, "guest", _PAGES)
            user = make(one, fd, neighbour)
            life.callback(user.file.close)
            user.begin()
            user.zap()
            there = parts.frames(found := user.file.get_pfns(0, _PAGES))
            user.put(found)
            parts.punch(fd, _PUNCHED)
            refilled = user.file.query().allocated - (_PAGES - _PUNCHED)
            neighbour.take(_PUNCHED)
            by_itself = user.end()
        # The kernel sends RELEASE for the last close asynchronously.
        parts.until(lambda: len(bench.shim.query_files()) == 1)
        neighbour.take(4 * _PAGES)
    parts.until(lambda: not bench.shim.query_files())
    lost, never = (
        len(user.marked.intersection(part))
        for part in (there[:_PUNCHED], there[_PUNCHED:])
    )
    others = len(user.marked & neighbour.frames)
    return user.name, user.in_time, user.late, lost, refilled, by_itself, never, others


def _run(lab: Lab) -> None:
    rows: list[tuple[object, ...]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            rows += [(bench.semantics, *_row(bench, user)) for user in _USERS]
    lab.say(f"Marks on {_PAGES} frames: {_PUNCHED} are punched, the others left")
    punched = "in time", "late", "lost", "refilled"
    lab.table(["rules", "goes by", *punched, "at the end", "never", "another's"], rows)


EXPERIMENT: Final = Experiment(
    name="payload",
    question="What must an event carry, so that a user can undo changes to frames?",
    run=_run,
    semantics=("v8", "v10", f"{__file__}:FramesLate", f"{__file__}:Frames"),
    misfits=(HUGE_ONLY, GET_WAITS),
)
