"""Row 13: a NUMA policy for a file without a mapping: on which node are its pages?"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.experiments.mapper import Mapper
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.experiments.lab import Bench, Lab

_NODES: Final = 2
_PAGES: Final = 64
_HALF: Final = _PAGES // 2


class Policy:
    """The node for a new page; called once, when it is allocated."""

    name = "the task's"

    def apply(self) -> None:
        """Set the policy, if it is not set when the file is made."""

    def node(self, page: int, task: int) -> int:
        """The node for *page* of the file, if a task on node *task* allocates it."""
        return task


class PerFile(Policy):
    """One policy for the whole file: interleaved."""

    name = "per file: interleave"

    def node(self, page: int, task: int) -> int:
        return page % _NODES


class PerRange(Policy):
    """By pgoff, as mbind(2) of a shared mapping sets it; without one the default.

    The default is the system's: the node of the allocating task.
    """

    name = "per range"

    def __init__(self) -> None:
        self._ranges: Final[list[tuple[int, int, int]]] = []

    def apply(self) -> None:
        """Bind each half to its vCPU's node, MPOL_BIND; present pages do not move."""
        self._ranges.extend([(0, _HALF, 0), (_HALF, _PAGES, 1)])

    def node(self, page: int, task: int) -> int:
        for start, end, node in reversed(self._ranges):
            if start <= page < end:
                return node
        return task


class _Memory:
    """A file, and the node of each of its pages.

    The shim decides which pages are present; the model only decides their nodes.
    """

    def __init__(self, stack: ExitStack, bench: Bench, policy: Policy) -> None:
        self._fd: Final = bench.shim.memfd_create("guest", size=_PAGES * PAGE_SIZE)
        stack.callback(os.close, self._fd)
        self.user: Final = Mapper(stack, bench, self._fd, _PAGES)
        self.policy: Final = policy
        self.nodes: Final[dict[int, int]] = {}

    def _place(self, task: int) -> None:
        """Give each new page a node, and forget removed pages."""
        there = {
            page
            for each in self.user.file.query_map()
            for page in range(each.offset, each.offset + each.count)
            if each.memory == "allocated"
        }
        for page in self.nodes.keys() - there:
            del self.nodes[page]
        for page in there - self.nodes.keys():
            self.nodes[page] = self.policy.node(page, task)

    def allocate(self, task: int, start: int = 0, end: int = _PAGES) -> None:
        """The VMM's thread on node *task* calls fallocate(2)."""
        parts.allocate(self._fd, end - start, start)
        self._place(task)

    def touch(self, task: int, start: int = 0, end: int = _PAGES) -> None:
        """A vCPU on node *task* touches pages."""
        if not self.user.rules.allocates:
            # The vCPU exits, and the VMM's thread fills the hole.
            self.allocate(0, start, end)
        self.user.touch(range(start, end))
        self._place(task)

    def punch(self) -> None:
        parts.punch(self._fd, _PAGES)
        self._place(0)

    def touch_halves(self) -> None:
        """Each vCPU touches its half, on its node."""
        self.touch(0, 0, _HALF)
        self.touch(1, _HALF)

    @property
    def local(self) -> int:
        """How many pages are on the node of their vCPU. Each vCPU uses a half."""
        return sum(node == (page >= _HALF) for page, node in self.nodes.items())

    @property
    def report(self) -> str:
        """How many pages are on each node."""
        nodes = list(self.nodes.values())
        return "+".join(str(nodes.count(node)) for node in range(_NODES))


def _allocated_before(memory: _Memory) -> None:
    memory.allocate(0)
    memory.policy.apply()


def _allocated(memory: _Memory) -> None:
    memory.policy.apply()
    memory.allocate(0)


def _by_halves(memory: _Memory) -> None:
    """The VMM sets its task's policy before each call."""
    memory.policy.apply()
    memory.allocate(0, 0, _HALF)
    memory.allocate(1, _HALF)


def _booted(memory: _Memory) -> None:
    """The first vCPU clears all memory."""
    memory.policy.apply()
    memory.touch(0)
    memory.touch_halves()


def _touched(memory: _Memory) -> None:
    memory.policy.apply()
    memory.touch_halves()


def _punched(memory: _Memory) -> None:
    _allocated_before(memory)
    memory.punch()
    memory.touch_halves()


_STEPS: Final[tuple[tuple[str, Callable[[_Memory], None]], ...]] = (
    ("fallocate, then the policy", _allocated_before),
    ("  and punched, touched again", _punched),
    ("the policy, then fallocate", _allocated),
    ("the same by halves, set_mempolicy", _by_halves),
    ("the policy, one vCPU touches all", _booted),
    ("the policy, each touches its half", _touched),
)
_POLICIES: Final = (Policy, PerFile, PerRange)


def _run(lab: Lab) -> None:
    for number, semantics in enumerate(lab.semantics):
        rows = []
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            for name, step in _STEPS:
                row: list[object] = [name]
                for policy in _POLICIES:
                    with ExitStack() as stack:
                        memory = _Memory(stack, bench, policy())
                        step(memory)
                        row += [memory.local, memory.report]
                rows.append(row)
        lab.say(
            "\n" * bool(number) + f"{bench.semantics}: local ones of {_PAGES} pages"
        )
        head = [text for policy in _POLICIES for text in (policy.name, "nodes")]
        lab.table(["", *head], rows)


EXPERIMENT: Final = Experiment(
    name="placement",
    question="On which nodes are a file's pages, if nobody has mapped it?",
    run=_run,
    semantics=("guest_memfd-7.2",),
)
