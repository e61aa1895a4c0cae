"""One hook for every invalidation, or a hook for each reason."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, TypeAlias

from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.experiments.mapper import NOT_KEPT, Mapper, keeps_attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.experiments.lab import Bench, Lab

_SECRET: Final = "its data"
_ZEROS: Final = "zeros"


class Machine:
    """Frames with content, and what the vendor's firmware knows about them.

    The hooks get frames, as kvm_arch_gmem_*() do.
    """

    # Whether other readers than the guest get ciphertext, and accesses to the guest's
    # frames fault: SEV-SNP. Otherwise content is plain: pKVM.
    encrypts = False

    def __init__(self) -> None:
        self.content: Final[dict[int, str]] = {}
        # The frames of the guest, by RMP or stage 2.
        self.owned: Final[set[int]] = set()

    def make_private(self, pfn: int) -> None:
        self.owned.add(pfn)

    def read(self, pfn: int) -> str:
        """What the host reads from a frame."""
        if pfn in self.owned:
            return "a fault"
        found = self.content.get(pfn, _ZEROS)
        return "ciphertext" if self.encrypts and found == _SECRET else found


class Snp(Machine):
    """The RMP has the owner of each frame; its content is useless to others."""

    encrypts = True


class Pkvm(Machine):
    """A conversion keeps content, as the guest shares it. A teardown scrubs it."""


def scrub(machine: Machine, pfn: int) -> None:
    """Take a frame from the guest, and clear it."""
    machine.owned.discard(pfn)
    machine.content[pfn] = _ZEROS


def keep(machine: Machine, pfn: int) -> None:
    """Take a frame from the guest, and leave its content."""
    machine.owned.discard(pfn)


def nothing(_machine: Machine, _pfn: int) -> None:
    """No hook at all."""


_Hook: TypeAlias = "Callable[[Machine, int], None]"

# The hooks for a private page that becomes shared, and for one that leaves the file. A
# single hook cannot distinguish these.
_HOOKS: Final[tuple[tuple[str, _Hook, _Hook], ...]] = (
    ("no hook", nothing, nothing),
    ("invalidate() scrubs", scrub, scrub),
    ("invalidate() keeps", keep, keep),
    ("make_shared() keeps, reclaim() scrubs", keep, scrub),
)


class _Guest:
    """A guest of one page, whose KVM calls hooks in its callbacks."""

    def __init__(
        self,
        stack: ExitStack,
        bench: Bench,
        machine: Machine,
        make_shared: _Hook,
        reclaim: _Hook,
    ) -> None:
        self._machine: Final = machine
        self._make_shared: Final = make_shared
        self._reclaim: Final = reclaim
        self.fd: Final = parts.new_file(stack, bench.shim, "guest", 1)
        self.file: Final = stack.enter_context(bench.shim.file(self.fd))
        self.user: Final = Mapper(stack, bench, self.fd, 1, at=self._at)
        # The frame of the page while it is private.
        self.pfn: int | None = None

    def _at(self, point: str, _page: int) -> None:
        """At the end of an event: no event says why it was sent, so ask the daemon."""
        if point != "end" or self.pfn is None:
            return
        pfn, self.pfn = self.pfn, None
        there = self.user.file.query_map()[0].memory == "allocated"
        (self._make_shared if there else self._reclaim)(self._machine, pfn)

    def write(self) -> None:
        """The guest writes to its page, which is private."""
        self._machine.content[self._touch()] = _SECRET

    def read(self) -> str:
        """The guest reads it."""
        return self._machine.content.get(self._touch(), _ZEROS)

    def _touch(self) -> int:
        pfn = self.user.fault(0)
        self._machine.make_private(pfn)
        self.pfn = pfn
        return pfn

    def convert(self, *, private: bool) -> None:
        self.file.set_memory_attributes(0, 1, private)


def _watch(
    bench: Bench,
    machine: Machine,
    make_shared: _Hook,
    reclaim: _Hook,
) -> tuple[list[str], list[str]]:
    """What is read after each step; and the events of a conversion and of a punch."""
    with ExitStack() as stack:
        neighbour = parts.Neighbour(stack, bench.shim, 1)
        guest = _Guest(stack, bench, machine, make_shared, reclaim)
        guest.write()
        guest.convert(private=False)
        host = machine.read(guest.user.fault(0))
        guest.convert(private=True)
        back = guest.read()
        guest.write()
        parts.punch(guest.fd, 1)
        # The neighbour gets the frame that was freed last.
        neighbour.take()
        (frame,) = neighbour.frames
        events = [
            f"pages {start} to {end}, {kinds or 'no kinds'}"
            for start, end, kinds in guest.user.seen
        ]
        return [host, back, machine.read(frame)], [events[0], events[-1]]


def _serves(machine: Machine, seen: list[str]) -> str:
    """Whether the guest and its host read what they need."""
    host, back, after = seen
    if machine.encrypts:
        return "no" if "a fault" in (host, after) else "yes"
    return "yes" if (host, back, after) == (_SECRET, _SECRET, _ZEROS) else "no"


def _run(lab: Lab) -> None:
    sent: list[list[str]] = []
    rows: list[list[str]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            if not keeps_attributes(bench):
                lab.say(f"{bench.semantics}: {NOT_KEPT}")
                continue
            mine = []
            for name, make_shared, reclaim in _HOOKS:
                for kind in (Pkvm, Snp):
                    machine = kind()
                    seen, events = _watch(bench, machine, make_shared, reclaim)
                    mine.append([name, kind.__name__, *seen, _serves(machine, seen)])
            sent.append([bench.semantics, *events])
        if rows and mine != rows:
            lab.say(f"{bench.semantics} has other outcomes")
        rows = rows or mine
    if not rows:
        return
    lab.table(["the event of", "a conversion to shared", "a punch"], sent)
    lab.say()
    head = "hooks", "guest", "shared: host", "back: guest"
    lab.table([*head, "punched: another", "serves"], rows)


EXPERIMENT: Final = Experiment(
    name="hooks",
    question="Can one hook serve conversions and frees, or does each need its own?",
    run=_run,
    semantics=("in-place-v8", "in-place-next"),
)
