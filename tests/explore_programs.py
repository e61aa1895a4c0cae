"""Random scenarios: actors that do whatever a scenario may do, under various rules."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs.explore import Scenario
from inaccfs.iommu import WAYS
from inaccfs.semantics import (
    V7,
    V8,
    V10,
    Bind,
    GuestMemfd,
    InPlaceNext,
    InPlaceV8,
    LiveUpdate,
    Semantics,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.semantics.rules import PastEnd, Size


class NoFill(V8):
    """get-pfn of a hole fails."""

    allocates = False


class Free(GuestMemfd):
    """The size of a file may change at any time, and limits allocations."""

    size = "free"
    past_end = "refused"


class Silent(V8):
    """A file may grow and shrink, and allocations send no event."""

    size: ClassVar[Size] = "free"
    past_end: ClassVar[PastEnd] = "refused"
    notifies = "punches"


class FreeInPlace(InPlaceV8):
    """Files may grow and shrink, and pages that have memory are not converted."""

    size = "free"
    content = "refused"
    atomicity = "huge page"


class NoReferences(V10):
    """Fetched pages are good until they are invalidated."""

    references = "none"


RULES: Final[tuple[Semantics, ...]] = (
    *(V7(), V8(), V10(), Bind(), GuestMemfd(), InPlaceV8(), InPlaceNext()),
    *(LiveUpdate(), NoFill(), Free(), Silent(), FreeInPlace(), NoReferences()),
)

# How many calls each actor makes.
_CALLS: Final = 2


class Program(Scenario):
    """Two or three actors, each with calls that were drawn."""

    seed: ClassVar[int]

    def setup(self) -> None:
        dice = random.Random(self.seed)
        rules = self._world.semantics
        self.pages = dice.choice([1, 2, 3])
        self.fd = self.file(pages=dice.choice([0, self.pages, self.pages]))
        self.one, self.other = self.vm("one"), self.vm("other")
        self.bare = self.vm("bare").client.file(self.fd)
        if dice.random() < 0.3:
            self.truncate(self.fd, 6)
        if dice.random() < 0.8:
            with suppress(OSError):
                self.slot(self.one, self.fd, pages=self.pages)
        self.cpus = [vm.create_vcpu() for vm in (self.one, self.one, self.other)]
        if dice.random() < 0.7:
            self.write(self.cpus[0], 0, "old")
        if dice.random() < 0.3:
            self.allocate(self.fd, 0, self.pages)
        self.mapped = self.device = None
        if rules.attributes == "file" and dice.random() < 0.4:
            with suppress(OSError):
                self.convert_file(self.one, self.fd, 0, 1, private=False)
                self.mapped = self.iommu(dice.choice(WAYS), self.fd, 1)
                self.device = self.mapped.create_device()
        self.lists = [
            [self.drawn(dice) for _ in range(_CALLS)]
            for _ in range(dice.choice([2, 3]))
        ]

    def actors(self) -> Iterator[tuple[str, Callable[[], object]]]:
        for index, calls in enumerate(self.lists):
            yield f"a{index}", self.act(index, calls)

    def act(
        self, index: int, calls: list[Callable[[int], object]]
    ) -> Callable[[], None]:
        def run() -> None:
            for call in calls:
                with suppress(OSError):
                    call(index)

        return run

    def drawn(self, dice: random.Random) -> Callable[[int], object]:
        """A call; it is given the actor's number, as a vCPU has one thread."""
        page = dice.randrange(self.pages)
        end, high = dice.randrange(page, self.pages) + 1, dice.choice([page, 5])
        private, gfn = dice.random() < 0.5, dice.choice([0, 0, 4])
        vm = dice.choice([self.one, self.one, self.other])
        size = dice.choice([0, 1, 2, 6])
        calls: list[Callable[[int], object]] = [
            *[lambda me: self.read(self.cpus[me], page)] * 3,
            *[lambda me: self.write(self.cpus[me], page, f"by {me}")] * 2,
            *[lambda _: self.punch(self.fd, page, end)] * 4,
            *[lambda _: self.allocate(self.fd, high, high + 1)] * 2,
            *[lambda _: self.truncate(self.fd, size)] * 2,
            *[lambda _: self.get_and_put(self.bare, high)] * 2,
            *[lambda _: self.convert(vm, page, end, private=private)] * 2,
            *[lambda _: self.convert_file(vm, self.fd, page, end, private=private)] * 2,
            lambda _: self.slot(vm, self.fd, page, number=1, gfn=gfn),
            lambda _: self.slot(self.other, self.fd, page),
            lambda _: self.delete_slot(vm),
            lambda _: self.freeze(vm, self.fd),
            lambda _: self.memory_failure(vm, self.fd, page),
            lambda _: self.unmap(vm, page, end),
            lambda _: self.kill(vm),
            lambda _: self.read(vm.create_vcpu(), page),
        ]
        if self.device is not None and self.mapped is not None:
            mapped, device = self.mapped, self.device
            calls += [lambda _: self.dma(device, 0)] * 2
            calls += [lambda _: self.restore(mapped)] * 2
        return dice.choice(calls)


def program(number: int) -> type[Program]:
    """The scenario of a number."""
    return type(f"Program{number}", (Program,), {"seed": number})
