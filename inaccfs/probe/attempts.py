"""A row, the file that it is tried on, and one attempt."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from inaccfs import errnos
from inaccfs.probe import children, outcomes
from inaccfs.probe.targets import ProbeError, no_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inaccfs.probe.targets import Target


@dataclass(frozen=True, slots=True)
class Subject:
    """The file that a row is tried on."""

    target: Target
    """The kind of the file; makes others."""

    fd: int
    """The file, open for reading and writing; -1 for rows that make their own."""

    size: int
    """The size of the file in bytes: four units, unless it could not be resized."""

    unit: int
    """Sizes and offsets of the file are multiples of this: the page size, mostly."""

    say: Callable[[str], None]
    """Reports the outcome so far, in case the next call kills the process."""

    @property
    def link(self) -> str:
        """A path of the same file."""
        return f"/proc/self/fd/{self.fd}"


class Row(NamedTuple):
    """One call to try. Names are unique among all rows."""

    group: str
    name: str
    # Returns the outcome; None means "ok". Raises OSError or NotHere.
    call: Callable[[Subject], str | None]
    makes_the_file: bool


def rows(
    group: str,
    calls: Mapping[str, Callable[[Subject], str | None]],
    *,
    make_the_file: bool = False,
) -> list[Row]:
    """The rows of one group; *calls* is by name."""
    return [Row(group, name, call, make_the_file) for name, call in calls.items()]


def in_bytes(count: int) -> str:
    """The outcome of a call that has moved *count* bytes."""
    return f"ok {count} bytes"


def attempt(target: Target, row: Row) -> str:
    """Try *row* on a file of *target*, in a child; the outcome by name.

    Raises:
        ProbeError: the child that should make the file hangs.
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
        return outcomes.not_here(f"no file, {errnos.name(exc.errno)}")
    except ProbeError as exc:
        # The machine had this kind of file a moment ago, but not any more.
        return outcomes.not_here(str(exc))
    say("")
    before = os.fstat(fd).st_size
    outcome = outcomes.of(
        lambda: row.call(Subject(target, fd, before, target.unit, say))
    )
    after = os.fstat(fd).st_size
    # Also after an error: a row that changes the size always says so.
    return outcome if after == before else f"{outcome}, size {after}"
