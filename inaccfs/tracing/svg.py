"""A trace file as a picture for a page: tracks, slices, and the arrows between them.

usage: python -m inaccfs.tracing.svg FILE.json > FILE.svg

It suits traces of a few calls, such as one punch and its events: it draws everything
from the first slice to the last. Perfetto shows more.
"""

from __future__ import annotations

import sys
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Event = dict[str, Any]

_WIDTH: Final = 900
_LEFT: Final = 190
_ROW: Final = 44
_BAR: Final = 26
_TOP: Final = 30
# The approximate width of a letter.
_LETTER: Final = 6.7

_STYLE: Final = """\
text { font: 12px sans-serif; fill: #222 }
.track, .axis { fill: #666 }
.line { stroke: #ddd }
.call { fill: #9ecae1 } .event { fill: #fdd0a2 } .refused { fill: #fcae91 }
.flow { stroke: #444; fill: none; marker-end: url(#tip) }"""

_TIP: Final = (
    '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" '
    'markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#444"/></marker>'
)


class _Scale(NamedTuple):
    """Converts microseconds to coordinates."""

    start: float
    end: float

    def x(self, time: float) -> float:
        share = (time - self.start) / ((self.end - self.start) or 1)
        return round(_LEFT + share * (_WIDTH - _LEFT - 20), 1)


def draw(events: Sequence[Event]) -> str:
    """Draw the events of a trace.

    Raises:
        ValueError: there is no slice in it.
    """
    slices = [event for event in events if event["ph"] == "X"]
    if not slices:
        raise ValueError("there is nothing in this trace that takes time")
    scale = _Scale(
        min(event["ts"] for event in slices),
        max(event["ts"] + event["dur"] for event in slices),
    )
    names = {
        event["tid"]: event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }
    # Files above peers, each in the order of their first events.
    used = sorted({(event["pid"], event["tid"]) for event in slices})
    rows = {track: _TOP + _ROW * row for row, (_, track) in enumerate(used)}
    height = _TOP + _ROW * len(rows) + 30
    body = [
        *(_track(names[track], at) for track, at in rows.items()),
        *(_slice(event, rows[event["tid"]], scale) for event in slices),
        *_arrows(events, rows, scale),
        _axis(scale, height - 24),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'role="img"><style>{_STYLE}</style><defs>{_TIP}</defs>\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
    )
    return "\n".join([head, *body, "</svg>\n"])


def _track(name: str, top: int) -> str:
    middle = top + _BAR // 2
    return (
        f'<line class="line" x1="{_LEFT}" y1="{middle}" x2="{_WIDTH - 20}" '
        f'y2="{middle}"/>'
        f'<text class="track" x="10" y="{middle + 4}">{escape(name)}</text>'
    )


def _slice(event: Event, top: int, scale: _Scale) -> str:
    left, right = scale.x(event["ts"]), scale.x(event["ts"] + event["dur"])
    width = max(round(right - left, 1), 2.0)
    name, took = event["name"], f"{event['dur']:.0f} µs"
    room = (right - left - 8) / _LETTER
    label = next((each for each in (f"{name}, {took}", name) if len(each) < room), "")
    return (
        f'<rect class="{event["cat"]}" x="{left}" y="{top}" width="{width}" '
        f'height="{_BAR}" rx="3"><title>{escape(name)}: {took}</title></rect>'
        f'<text x="{left + 5}" y="{top + 17}">{escape(label)}</text>'
    )


def _arrows(
    events: Sequence[Event], rows: dict[int, int], scale: _Scale
) -> Iterator[str]:
    ends = sorted(
        (event for event in events if event["ph"] in "sf"), key=lambda one: one["id"]
    )
    for _, pair in groupby(ends, key=lambda one: one["id"]):
        begin, end = sorted(pair, key=lambda one: one["ph"], reverse=True)
        y1, y2 = rows[begin["tid"]] + _BAR, rows[end["tid"]]
        yield (
            f'<path class="flow" d="M{scale.x(begin["ts"])} {y1} '
            f'L{scale.x(end["ts"])} {y2}"/>'
        )


def _axis(scale: _Scale, y: int) -> str:
    length = scale.end - scale.start
    return "".join(
        f'<text class="axis" x="{scale.x(scale.start + length * share)}" y="{y + 14}" '
        f'text-anchor="middle">{length * share:.0f} µs</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    )


def main(arguments: Sequence[str]) -> int:
    """Draw the file that is named."""
    if len(arguments) != 1:
        sys.exit("usage: python -m inaccfs.tracing.svg FILE.json > FILE.svg")
    try:
        made = msgspec.json.decode(Path(arguments[0]).read_bytes())
        sys.stdout.write(draw(made["traceEvents"]))
    except (OSError, ValueError, KeyError) as exc:
        sys.exit(f"inaccfs: {arguments[0]} cannot be drawn: {exc}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
