"""A row, what it tries its call on, and one attempt at it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from inaccfs.probe import children, outcomes
from inaccfs.probe.targets import ProbeError, no_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inaccfs.probe.targets import Target


@dataclass(frozen=True, slots=True)
class Subject:
    """The file that a row is tried on."""

    target: Target
    """Which kind of file it is, and how to get another."""

    fd: int
    """Of the file, for reading and writing; -1 for rows that make their own."""

    size: int
    """Of the file, in bytes; four units unless it could not be brought there."""

    unit: int
    """What sizes and offsets of the file are multiples of: the page, mostly."""

    say: Callable[[str], None]
    """Tells what has come so far, for the case that what follows kills the process."""

    @property
    def link(self) -> str:
        """A path that leads to the very file."""
        return f"/proc/self/fd/{self.fd}"


class Row(NamedTuple):
    """One thing to try. Its name is unique among all."""

    group: str
    name: str
    # Returns what to say, if not "ok". Raises OSError, or NotHere.
    call: Callable[[Subject], str | None]
    makes_the_file: bool


def rows(
    group: str,
    calls: Mapping[str, Callable[[Subject], str | None]],
    *,
    make_the_file: bool = False,
) -> list[Row]:
    """The rows of one group, by name."""
    return [Row(group, name, call, make_the_file) for name, call in calls.items()]


def in_bytes(count: int) -> str:
    """The outcome of a call that has moved *count* bytes."""
    return f"ok {count} bytes"


def attempt(target: Target, row: Row) -> str:
    """Try *row* on a file of *target*, in a child; the outcome by name.

    Raises:
        ProbeError: there was not even a file, for whoever should make it hangs.
    """
    ending = children.run(lambda say: _try(target, row, say))
    if ending.result is not None:
        return ending.result
    if not ending.stages:
        raise no_answer(target.name, ending)
    return f"{ending.stages[-1]} {ending.fate}".strip()


def _try(target: Target, row: Row, say: Callable[[str], None]) -> str:
    if row.makes_the_file:
        say("")
        return outcomes.of(lambda: row.call(Subject(target, -1, 0, target.unit, say)))
    try:
        fd = target.make()
    except OSError as exc:
        return outcomes.not_here(f"no file, {outcomes.errno_name(exc)}")
    except ProbeError as exc:
        # What the machine had a moment ago, it has no more.
        return outcomes.not_here(str(exc))
    say("")
    before = os.fstat(fd).st_size
    outcome = outcomes.of(
        lambda: row.call(Subject(target, fd, before, target.unit, say))
    )
    after = os.fstat(fd).st_size
    # Also where the call has failed: no row resizes a file unseen.
    return outcome if after == before else f"{outcome}, size {after}"
