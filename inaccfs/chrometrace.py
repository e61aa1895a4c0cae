"""Writes traces for ui.perfetto.dev and chrome://tracing.

The format is "Trace Event Format" (the JSON object format) of the Chromium project.
Times are nanoseconds of any clock.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    # What a viewer shows about a selected event.
    Details: TypeAlias = Mapping[str, str | int]

_encode: Final = msgspec.json.Encoder().encode


class Track(NamedTuple):
    """A line of the picture. Slices on it must be nested, or must not overlap."""

    process: int
    thread: int


class Writer:
    """Writes events as they come; the file is whole after `close`."""

    def __init__(self, write: Callable[[bytes], object], groups: Sequence[str]) -> None:
        """*write* takes the parts of the file in order; its exceptions are not caught.

        *groups* of tracks are shown in this order.
        """
        self._write: Final = write
        self._groups: Final = tuple(groups)
        # The groups that have a track.
        self._used: Final[set[str]] = set()
        self._threads: Final = itertools.count(1)
        self._flows: Final = itertools.count(1)
        # The text between two events.
        self._before = b""
        write(b'{"displayTimeUnit":"ns","traceEvents":[\n')

    def track(self, group: str, name: str) -> Track:
        """Make a track, next to others of its group."""
        process = self._groups.index(group) + 1
        if group not in self._used:
            self._used.add(group)
            self._name("process_name", Track(process, 0), group)
        track = Track(process, next(self._threads))
        self._name("thread_name", track, name)
        return track

    def _name(self, what: str, track: Track, name: str) -> None:
        self._event("M", what, track, args={"name": name})

    def slice(
        self,
        track: Track,
        name: str,
        start: int,
        end: int,
        category: str,
        args: Details | None = None,
    ) -> None:
        """Draw something that takes time."""
        dur = max(end - start, 0) / 1000
        self._event("X", name, track, ts=start / 1000, dur=dur, cat=category, args=args)

    def instant(
        self,
        track: Track,
        name: str,
        time: int,
        category: str,
        args: Details | None = None,
    ) -> None:
        """Draw something that takes no time."""
        self._event("i", name, track, ts=time / 1000, s="t", cat=category, args=args)

    def flow(self, name: str, begin: tuple[Track, int], end: tuple[Track, int]) -> None:
        """Draw an arrow between the slices of two tracks at these times."""
        number = next(self._flows)
        track, time = begin
        self._event("s", name, track, ts=time / 1000, id=number, cat="flow")
        track, time = end
        self._event("f", name, track, ts=time / 1000, id=number, cat="flow", bp="e")

    def _event(
        self, phase: str, name: str, track: Track, **rest: str | float | Details | None
    ) -> None:
        event = {
            "name": name,
            "ph": phase,
            "pid": track.process,
            "tid": track.thread,
            **{key: value for key, value in rest.items() if value is not None},
        }
        self._write(self._before + _encode(event))
        self._before = b",\n"

    def close(self, about: Details | None = None) -> None:
        """Write the end; *about* describes the whole trace."""
        self._write(b'\n],"otherData":' + _encode(about or {}) + b"}\n")
