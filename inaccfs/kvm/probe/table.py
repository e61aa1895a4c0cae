"""Runs rows on KVMs, and compares the outcomes of two KVMs."""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from inaccfs import errnos
from inaccfs.errors import InaccfsError
from inaccfs.kvm.probe.asking import ABSENT, Row, ask
from inaccfs.kvm.probe.machine import CannotBeginError
from inaccfs.kvm.probe.protocol import AbsentError
from inaccfs.kvm.probe.rows import ROWS
from inaccfs.probe import children

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from inaccfs.kvm.probe.protocol import Opponent

LIMIT: Final = 30.0
"""In seconds. A row takes milliseconds, under an emulated CPU a tenth of a second."""


# Rows wait for daemons and kernels more than they compute.
_AT_A_TIME: Final = 4


class Answer(NamedTuple):
    """The outcome of a row."""

    outcome: str
    why: str = ""
    """If the outcome is "absent": what the KVM lacks."""


class Side(Protocol):
    """A KVM that rows run on, or whose outcomes were recorded."""

    name: str
    """Its name, for people."""

    origin: str
    """Its kernel; empty if it is not a kernel's."""

    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        """The outcome of each row.

        Raises:
            InaccfsError: rows cannot run on it.
        """


class Asked:
    """A KVM that processes of this machine can use."""

    def __init__(
        self,
        opponent: Opponent,
        limit: float = LIMIT,
        begins: Callable[[Row], object] | None = None,
    ) -> None:
        """*begins* is called before each row."""
        self.name = opponent.name
        self.origin = opponent.origin
        self._opponent: Final = opponent
        self._limit: Final = limit
        self._begins: Final = begins

    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        """Run each row in a separate child process, a few of them at a time."""
        found = []
        asked: deque[children.Child] = deque()
        try:
            for row in rows:
                if len(asked) == _AT_A_TIME:
                    found.append(self._answer(asked.popleft()))
                asked.append(self._ask(row))
            while asked:
                found.append(self._answer(asked.popleft()))
        finally:
            for child in asked:
                child.kill()
        return found

    def _ask(self, row: Row) -> children.Child:
        if self._begins is not None:
            self._begins(row)
        return children.Child(
            lambda say: _in_child(row, self._opponent, say), self._limit
        )

    @staticmethod
    def _answer(child: children.Child) -> Answer:
        ending = child.ending()
        if ending.result is None:
            return Answer("; ".join([*ending.stages, ending.fate]))
        outcome, why, trouble = json.loads(ending.result)
        if trouble:
            raise InaccfsError(trouble)
        return Answer(outcome, why)


def _in_child(row: Row, opponent: Opponent, say: Callable[[str], None]) -> str:
    """The outcome, what the KVM lacks, and an error that concerns all rows."""
    return json.dumps(_tried(row, opponent, say))


def _tried(
    row: Row, opponent: Opponent, say: Callable[[str], None]
) -> tuple[str, str, str]:
    try:
        return ask(row, opponent.kvm(), say), "", ""
    except AbsentError as exc:
        return ABSENT, str(exc), ""
    except CannotBeginError as exc:
        return str(exc), "", ""
    except InaccfsError as exc:
        return "", "", str(exc)
    except OSError as exc:
        return f"stopped by {errnos.name(exc.errno)}", "", ""


class Result(NamedTuple):
    """A row with its answers, of one KVM or of two. The opponent is the second."""

    row: Row
    answers: list[Answer]

    @property
    def outcomes(self) -> list[str]:
        """The outcomes, in the same order."""
        return [answer.outcome for answer in self.answers]

    @property
    def differs(self) -> bool:
        """Whether there are two KVMs, and they behave differently."""
        if len(self.answers) < 2:
            return False
        one, other = self.outcomes
        # A row about something that the opponent lacks is not a difference.
        if other == ABSENT:
            return False
        if self.row.allowed:
            return not {one, other} <= self.row.allowed
        return one != other


def compare(sides: Sequence[Side], rows: Sequence[Row] = ROWS) -> list[Result]:
    """Run *rows* on one or two KVMs, one after the other.

    Raises:
        InaccfsError: rows cannot run on one of them.
    """
    columns = [side.answers(rows) for side in sides]
    return [
        Result(row, list(found))
        for row, found in zip(rows, zip(*columns, strict=True), strict=True)
    ]
