"""Checks what each step is said to touch: steps that do not conflict must commute.

Two steps are taken from one state in both orders. If by the keys that they touched
their order does not matter, the real objects must be the same in the end, and the
steps must have done the same. So the check finds accesses that no key stands for, which
the search cannot find: it would leave out one of the orders.

The comparison does not use the values of keys. It reads all that can be reached from
the world, except what is named below with the reason, and asks the kernel for the
memory of files.
"""

from __future__ import annotations

import os
import random
import types
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from inaccfs import mmcalls
from inaccfs.explore.actor import Actor
from inaccfs.explore.causes import conflict
from inaccfs.explore.choosers import Chance
from inaccfs.explore.mutex import Mutex
from inaccfs.explore.schedule import Schedule
from inaccfs.explore.search import Case, execute
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from inaccfs.explore import Scenario
    from inaccfs.explore.choosing import Execution
    from inaccfs.explore.state import Step
    from inaccfs.explore.world import World

_LEFT_OUT: Final = {
    # The explorer's own records: what is tracked, and what was found.
    "Tracker",
    "State",
    "Judge",
    "Cells",
    # For people: counts and traces. `ExploredVM.balance` is compared.
    "Trace",
    "FileTrace",
    "Counters",
    "Stats",
    # The daemon's reserve of memory, which no test uses up.
    "Headroom",
    # No long operation has a turn between two points.
    "Turn",
}
"""Classes whose objects are not compared."""

_NAMES_LEFT_OUT: Final = {
    # The number of the step in which a lock was taken; that it is held is compared.
    "since",
    # Numbers of fds, which depend on what was opened before.
    *("_fd", "fd", "private_fd"),
    # Numbers of inodes, which differ from one execution to the next.
    *("ino", "key", "numbers"),
    # The call that caused an event: for traces.
    "_cause",
    # Looked up when it is needed.
    "_size_limit",
    # A callback that was put in place at the start of the last event.
    "_then",
    # Set by the last event, and read by traces only.
    "_notice",
    # The gfns of a slot that an actor is making; no other actor reads them.
    "_prepared",
}
"""Attributes that are not compared."""


class Both(NamedTuple):
    """Two steps that did not conflict, in both orders."""

    prefix: list[int]
    actors: tuple[int, int]
    # What differs, in words.
    differs: str


class Real:
    """A copy of everything that can be reached from a world, to be compared."""

    def __init__(self, world: World) -> None:
        self._seen: Final[dict[int, int]] = {}
        # Objects must not be freed while their id() is remembered.
        self._kept: Final[list[object]] = []
        memory: Any = world.mount.superblock.frames
        self.parts: Final[dict[str, Hashable]] = {
            "backing": tuple(map(_backing, world.files.fds)),
            "cells": tuple(
                (key, world.cells.state(*key)) for key in sorted(world.cells._cells)
            ),
            "balances": tuple(vm.balance() for vm in world.vms),
            "frames": self._of(world.frames),
            "pool": self._of(memory),
            "files": self._of(list(world.files.inodes)),
            "vms": self._of(world.vms),
            "iommus": self._of(world.iommus),
            "punches": self._of(world.changes.punches),
            "locks": world.loop.unparked,
        }

    def difference(self, other: Real) -> str:
        """Where two copies differ; "" if they do not."""
        for name, part in self.parts.items():
            if part != other.parts[name]:
                return f"{name}: {_first(part, other.parts[name])}"
        return ""

    def _of(self, one: Any) -> Hashable:
        kind = type(one)
        if one is None or kind in (bool, str, bytes, float):
            found: Hashable = one
            return found
        if kind is int:
            number: int = one
            return number
        if kind in (range, slice) or isinstance(one, type | Enum):
            return repr(one)
        if isinstance(one, Schedule | types.ModuleType) or callable(one):
            return "code"
        if isinstance(one, Actor):
            return "actor", one.index
        if kind.__name__ in _LEFT_OUT:
            return "left out"
        if isinstance(one, list | tuple | deque) and not hasattr(one, "__dict__"):
            return tuple(map(self._of, one))
        if isinstance(one, bytearray | memoryview):
            return bytes(one)
        again = self._seen.get(id(one))
        if again is not None:
            return "again", again
        self._seen[id(one)] = len(self._seen)
        self._kept.append(one)
        return kind.__name__, self._items(one), self._attributes(one)

    def _items(self, one: Any) -> Hashable:
        if isinstance(one, dict):
            # A count of 0 is as good as none.
            items = [
                (self._of(key), value) for key, value in dict.items(one) if value != 0
            ]
            # Otherwise the order of insertion is a part of the state.
            if all(isinstance(key, int | str | tuple) for key in dict.keys(one)):
                items.sort(key=lambda item: repr(item[0]))
            return tuple((key, self._of(value)) for key, value in items)
        if isinstance(one, set | frozenset):
            try:
                return tuple(map(self._of, sorted(one)))
            except TypeError:
                return len(one)
        if isinstance(one, list | tuple | deque):
            return tuple(
                map(self._of, list.__iter__(one) if isinstance(one, list) else one)
            )
        return None

    def _attributes(self, one: Any) -> Hashable:
        found = []
        if isinstance(one, Mutex):
            return self._of(one.owner)
        for name, value in sorted(getattr(one, "__dict__", {}).items()):
            # By st_dev and st_ino.
            by_inode = name == "_files" and isinstance(value, dict)
            found.append((name, list(value.values()) if by_inode else value))
        for kind in type(one).__mro__:
            slots = vars(kind).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                descriptor = vars(kind).get(_mangled(kind, name))
                if isinstance(descriptor, types.MemberDescriptorType):
                    try:
                        found.append((name, descriptor.__get__(one)))
                    except AttributeError:
                        continue
        return tuple(
            (name, self._of(value))
            for name, value in found
            if name not in _NAMES_LEFT_OUT
        )


def _mangled(kind: type, name: str) -> str:
    private = name.startswith("__") and not name.endswith("__")
    return f"_{kind.__name__.lstrip('_')}{name}" if private else name


def _backing(fd: int) -> Hashable:
    """The size of a file, and which of its pages have memory."""
    size = os.fstat(fd).st_size
    return size, tuple(
        mmcalls.pages_there(fd, page * PAGE_SIZE, PAGE_SIZE) for page in range(12)
    )


def _first(one: Hashable, other: Hashable, path: str = "") -> str:
    """The first place where two copies differ."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        name = one[0] if one and isinstance(one[0], str) else ""
        for index, (mine, yours) in enumerate(zip(one, other, strict=True)):
            if mine != yours:
                return _first(mine, yours, f"{path}/{name or index}")
    return f"{path}: {str(one)[:200]} and {str(other)[:200]}"


class _Guided(Chance):
    """Takes given steps, and then ends the schedule; at random if there are none."""

    compares = True

    def __init__(self, seed: int, wanted: list[int], look: Callable[[], Real]) -> None:
        super().__init__(seed)
        self._wanted: Final = wanted
        self._look: Final = look
        self._schedule: Execution | None = None
        # In the end: the objects, the hash of the state, and who can go on.
        self.real: Real | None = None
        self.state: tuple[int, list[int]] | None = None
        # Before each step: who could take it.
        self.enabled: Final[list[list[int]]] = []

    def begin(self, schedule: Execution) -> None:
        super().begin(schedule)
        self._schedule = schedule

    def choose(self, depth: int, enabled: list[int], current: int) -> int | None:
        self.enabled.append(list(enabled))
        if depth < len(self._wanted):
            return self._wanted[depth] if self._wanted[depth] in enabled else None
        if self._wanted:
            self._arrive(enabled)
            return None
        return super().choose(depth, enabled, current)

    def end(self) -> None:
        if len(self.steps) == len(self._wanted):
            self._arrive([])

    def _arrive(self, enabled: list[int]) -> None:
        assert self._schedule is not None
        self.real = self._look()
        self.state = self._schedule.state_number(), list(enabled)


class Checker:
    """Takes pairs of steps of one case."""

    def __init__(self, case: Case) -> None:
        self._worlds: Final[list[World]] = []
        worlds = self._worlds

        def setup(scenario: Scenario) -> None:
            worlds[:] = [scenario._world]
            case.scenario.setup(scenario)

        made = type(case.scenario.__name__, (case.scenario,), {"setup": setup})
        self._case: Final = case._replace(scenario=made)
        # How many pairs were compared.
        self.compared = 0

    def run(self, seed: int, wanted: list[int]) -> tuple[_Guided, Schedule]:
        chooser = _Guided(seed, wanted, lambda: Real(self._worlds[0]))
        return chooser, execute(self._case, chooser)

    def sample(self, seed: int) -> Both | None:
        """Draw a schedule, and take two of its steps in both orders."""
        dice = random.Random(seed)
        drawn, _ = self.run(seed, [])
        choices = [step.actor for step in drawn.steps]
        depths = [
            depth
            for depth, enabled in enumerate(drawn.enabled)
            if len(enabled) > 1 and depth < len(choices)
        ]
        for depth in dice.sample(depths, min(3, len(depths))):
            one, other = dice.sample(drawn.enabled[depth], 2)
            found = self.pair(choices[:depth], one, other)
            if found is not None:
                return found
        return None

    def pair(self, prefix: list[int], one: int, other: int) -> Both | None:
        """Take two steps in both orders; the result if they wrongly do not conflict."""
        (first, ran), (second, again) = (
            self.run(0, [*prefix, *both]) for both in ((one, other), (other, one))
        )
        depth = len(prefix)
        if len(first.steps) <= depth or len(second.steps) <= depth:
            return None
        mine, yours = first.steps[depth], second.steps[depth]
        if (mine.actor, yours.actor) != (one, other) or conflict(mine, yours):
            return None
        self.compared += 1
        differs = _differs(first, second, ran, again)
        return Both(prefix, (one, other), differs) if differs else None


def _differs(first: _Guided, second: _Guided, ran: Schedule, again: Schedule) -> str:
    steps = [
        sorted((_facts(step) for step in each.steps[-2:]), key=str)
        for each in (first, second)
    ]
    if first.real is None or second.real is None or steps[0] != steps[1]:
        return f"the steps: {steps[0]} and {steps[1]}"
    if first.state != second.state:
        return f"the hash of the state, or who can go on: {first.state}, {second.state}"
    if found := first.real.difference(second.real):
        return found
    violations = [
        sorted({(each.kind, each.text) for each in schedule.violations})
        for schedule in (ran, again)
    ]
    if violations[0] != violations[1]:
        return f"the violations: {violations[0]} and {violations[1]}"
    return ""


def _facts(step: Step) -> tuple[Hashable, ...]:
    return (
        step.actor,
        step.did,
        step.label,
        tuple(sorted(step.touched.items(), key=str)),
    )
