"""Sums up a trace: rates and durations of each kind, and refused calls."""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inaccfs.control.messages import TraceRecord

    # Its notifier and its sequence.
    _Event: TypeAlias = tuple[int, int]

_NS: Final = 1_000_000_000

# Rates and quantiles cover the last so many seconds.
WINDOW_SECONDS: Final = 5

# Quantiles cover at most so many durations of a kind, the latest ones.
_DURATIONS: Final = 4096

# For how long refused calls are shown, and how many.
_REFUSED_SECONDS: Final = 600
_REFUSED: Final = 1000

_EVENTS: Final = ("event", "answer", "evict")


class Rate(NamedTuple):
    """One kind, over the last seconds. Durations are seconds, None if unknown."""

    kind: str
    a_second: float
    refused_a_second: float
    p50: float | None
    p99: float | None
    # The count since the trace began.
    total: int


class Refused(NamedTuple):
    """Refused system calls of one process on one file."""

    command: str
    pid: int
    call: str
    file: str
    error: str
    times: int
    # The time of the last one: CLOCK_MONOTONIC, in nanoseconds.
    last: int


class Rates:
    """Takes records, and sums them up."""

    def __init__(self) -> None:
        self._totals: Final[Counter[str]] = Counter()
        # By kind, for the last seconds: when each record was over, and whether it was
        # refused.
        self._recent: Final[dict[str, deque[tuple[int, bool]]]] = {}
        self._durations: Final[dict[str, deque[tuple[int, int]]]] = {}
        # The latest are at the end.
        self._refused: Final[dict[tuple[str, int, str, str, str], Refused]] = {}
        # By notifier and sequence: when each unanswered event was sent.
        self._sent: Final[dict[_Event, int]] = {}
        # By when it began: the events of each system call or command that is not over.
        self._of_call: Final[dict[int, list[_Event]]] = {}

    def add(self, records: Iterable[TraceRecord]) -> None:
        """Take records, in order."""
        for record in records:
            kind = _kind(record)
            self._totals[kind] += 1
            recent = self._recent.setdefault(kind, deque())
            refused = _is_refused(record)
            recent.append((record.time, refused))
            if record.began:
                durations = self._durations.setdefault(kind, deque(maxlen=_DURATIONS))
                durations.append((record.time, record.time - record.began))
            if refused:
                self._refuse(record, kind)
            if record.kind in _EVENTS:
                key = record.notifier, record.sequence
                if record.kind == "event" and record.sequence:
                    self._sent[key] = record.time
                    if record.cause:
                        self._of_call.setdefault(record.cause, []).append(key)
                else:
                    self._sent.pop(key, None)
            elif record.began:
                # A notifier that was unregistered has not answered.
                for key in self._of_call.pop(record.began, ()):
                    self._sent.pop(key, None)

    def _refuse(self, record: TraceRecord, kind: str) -> None:
        file = record.file or f"inode {record.ino}"
        key = record.command, record.pid, kind, file, record.error
        before = self._refused.pop(key, None)
        times = 1 if before is None else before.times + 1
        self._refused[key] = Refused(*key, times, record.time)
        if len(self._refused) > _REFUSED:
            del self._refused[next(iter(self._refused))]

    def rates(self, now: int) -> list[Rate]:
        """All kinds so far, the most frequent first."""
        since = now - WINDOW_SECONDS * _NS
        found = []
        for kind, recent in self._recent.items():
            while recent and recent[0][0] < since:
                recent.popleft()
            durations = self._durations.get(kind, deque())
            while durations and durations[0][0] < since:
                durations.popleft()
            took = sorted(duration for _, duration in durations)
            refused = sum(failed for _, failed in recent)
            found.append(
                Rate(
                    kind,
                    len(recent) / WINDOW_SECONDS,
                    refused / WINDOW_SECONDS,
                    _quantile(took, 0.5),
                    _quantile(took, 0.99),
                    self._totals[kind],
                )
            )
        return sorted(found, key=lambda one: (-one.a_second, -one.total, one.kind))

    def refused(self, now: int) -> list[Refused]:
        """Refused calls, the latest first."""
        since = now - _REFUSED_SECONDS * _NS
        return [one for one in reversed(self._refused.values()) if one.last > since]

    def sent(self, notifier: int, sequence: int) -> int | None:
        """When an unanswered event was sent; None if there is no record of that."""
        return self._sent.get((notifier, sequence))


def _is_refused(record: TraceRecord) -> bool:
    """Whether a caller was refused something, other than a lookup of a missing name."""
    looked = record.kind == "request" and record.error in ("ENOENT", "ENODATA")
    return bool(record.error) and not looked


def _kind(record: TraceRecord) -> str:
    if record.kind == "request":
        return record.event.lower()
    return record.kind


def _quantile(ordered: list[int], share: float) -> float | None:
    """The quantile of durations in ascending order, in seconds."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)] / _NS
