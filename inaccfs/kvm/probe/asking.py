"""A row: one question to a KVM, and how to ask it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from inaccfs.kvm.probe.machine import Machine
from inaccfs.kvm.probe.protocol import AbsentError
from inaccfs.kvmcalls import GUEST_MEMFD_FLAG_MMAP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Unpack

    from inaccfs.kvm.probe.protocol import Kvm

    Steps = Callable[[Machine], Iterator[object]]

ABSENT: Final = "absent"
"""The outcome of a row about something that this KVM does not have."""


class Options(TypedDict, total=False):
    """What `Rows.row` and `Rows.add` pass on to `Row`."""

    low: bool
    private: bool
    mappable: bool
    allowed: frozenset[str]


class Row(NamedTuple):
    """One question. Names are unique."""

    group: str
    name: str
    sentence: str
    """What the row does, in one sentence for people."""

    steps: Steps
    """Yields an outcome per step; all of them together are the outcome of the row."""

    low: bool = True
    """Whether the VM needs slot 0, to run a guest."""

    private: bool = False
    """Whether the row is about attributes."""

    mappable: bool = False
    """Whether the row is about files that userspace can map."""

    allowed: frozenset[str] = frozenset()
    """For a race: the possible outcomes. Empty for all other rows."""


class Rows:
    """The rows of a group, in the order of their definition."""

    def __init__(self, group: str) -> None:
        self.group: Final = group
        self.rows: Final[list[Row]] = []

    def row(
        self, sentence: str, **options: Unpack[Options]
    ) -> Callable[[Steps], Steps]:
        """Make a row from a generator; both have the same name, after the group's."""

        def make(steps: Steps) -> Steps:
            self.add(steps.__name__.replace("_", "-"), sentence, steps, **options)
            return steps

        return make

    def add(
        self, name: str, sentence: str, steps: Steps, **options: Unpack[Options]
    ) -> None:
        """Add a row; for rows that differ only in their arguments."""
        name = f"{self.group}-{name}"
        self.rows.append(Row(self.group, name, sentence, steps, **options))


def ask(row: Row, kvm: Kvm, say: Callable[[str], None]) -> str:
    """The outcome of a row. *say* gets each step's outcome as soon as it is known.

    Raises:
        AbsentError: this KVM does not have what the row asks about.
        OSError: the KVM refuses something that the row needs before it can ask.
    """
    if row.private and not kvm.private:
        raise AbsentError("KVM_SET_MEMORY_ATTRIBUTES")
    if row.mappable and not kvm.file_flags & GUEST_MEMFD_FLAG_MMAP:
        raise AbsentError("GUEST_MEMFD_FLAG_MMAP")
    machine = Machine(kvm, low=row.low)
    steps = []
    for step in row.steps(machine):
        steps.append(str(step))
        say(steps[-1])
    return "; ".join(steps)
