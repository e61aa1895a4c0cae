"""Checks of a file for Perfetto and Chrome: its form, its slices, and its arrows."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from typing import Any, Final

import jsonschema  # type: ignore[import-untyped]

Event = dict[str, Any]

_NUMBER: Final = {"type": "number", "minimum": 0}
_TRACK: Final = {"pid": {"type": "integer"}, "tid": {"type": "integer"}}
_NAME: Final = {"name": {"type": "string", "minLength": 1}}
_ARGS: Final = {
    "args": {
        "type": "object",
        "additionalProperties": {"type": ["string", "integer"]},
    }
}
_TIMED: Final = {**_NAME, **_TRACK, **_ARGS, "ts": _NUMBER, "cat": {"type": "string"}}


def _phase(name: str, needed: list[str], members: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"ph": {"const": name}, **members},
        "required": ["ph", "name", "pid", "tid", *needed],
        "additionalProperties": False,
    }


# The part of "Trace Event Format" that is used.
SCHEMA: Final = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "traceEvents": {
            "type": "array",
            "items": {
                "oneOf": [
                    _phase("X", ["ts", "dur", "cat"], {**_TIMED, "dur": _NUMBER}),
                    _phase(
                        "i", ["ts", "s"], {**_TIMED, "s": {"enum": ["t", "p", "g"]}}
                    ),
                    _phase("s", ["ts", "id"], {**_TIMED, "id": {"type": "integer"}}),
                    _phase(
                        "f",
                        ["ts", "id", "bp"],
                        {**_TIMED, "id": {"type": "integer"}, "bp": {"const": "e"}},
                    ),
                    {
                        **_phase("M", ["args"], {**_NAME, **_TRACK, **_ARGS}),
                    },
                ]
            },
        },
        "otherData": {"type": "object"},
    },
    "required": ["traceEvents"],
    "additionalProperties": False,
}


class Trace:
    """A whole file, which has been checked."""

    def __init__(self, data: bytes) -> None:
        made = json.loads(data)
        jsonschema.validate(made, SCHEMA)
        self.events: Final[list[Event]] = made["traceEvents"]
        self.about: Final[Event] = made["otherData"]
        # The name of each track, with that of its group.
        self._groups: Final = self._named("process_name", "pid")
        self._tracks: Final = self._named("thread_name", "tid")
        for event in self.events:
            if event["ph"] != "M":
                assert event["pid"] in self._groups
                assert event["tid"] in self._tracks
        self._check_slices()
        # By arrow: the slice at its beginning and the slice at its end.
        self.arrows: Final = self._find_arrows()

    def _named(self, what: str, key: str) -> dict[int, str]:
        named = [event for event in self.events if event["name"] == what]
        found = {event[key]: event["args"]["name"] for event in named}
        assert len(found) == len(named)
        return found

    def of(self, phase: str, name: str | None = None) -> list[Event]:
        """The events of a phase, of this name."""
        return [
            event
            for event in self.events
            if event["ph"] == phase and name in (None, event["name"])
        ]

    def place(self, event: Event) -> tuple[str, str]:
        """Group and track."""
        return self._groups[event["pid"]], self._tracks[event["tid"]]

    def _check_slices(self) -> None:
        """On no track do two slices overlap."""
        by_track = defaultdict(list)
        for event in self.of("X"):
            by_track[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        for found in by_track.values():
            found.sort()
            for (_, end), (start, _) in itertools.pairwise(found):
                # In microseconds, with three digits after the point.
                assert start >= end - 0.002

    def _find_arrows(self) -> list[tuple[Event, Event]]:
        begins = {event["id"]: event for event in self.of("s")}
        ends = {event["id"]: event for event in self.of("f")}
        assert begins.keys() == ends.keys()
        assert len(begins) == len(self.of("s")) == len(self.of("f"))
        for number, begin in begins.items():
            assert (begin["name"], begin["cat"]) == (
                ends[number]["name"],
                ends[number]["cat"],
            )
            assert begin["ts"] <= ends[number]["ts"]
        return [
            (self._slice_at(begin), self._slice_at(ends[number]))
            for number, begin in begins.items()
        ]

    def _slice_at(self, end: Event) -> Event:
        (found,) = [
            event
            for event in self.of("X")
            if event["tid"] == end["tid"]
            and event["ts"] - 0.002 <= end["ts"] < event["ts"] + event["dur"] + 0.002
        ]
        return found
