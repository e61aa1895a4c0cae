"""Curves on two logarithmic axes, as an SVG that is legible in light and in dark."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_WIDTH, _HEIGHT = 720, 420
# The bounds of the axes; the names of the curves are to their right.
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 520, 20, 360

# Colours of Okabe and Ito, which everybody can distinguish on light and on dark; and
# dashes, for readers without colours.
_CURVES: Final = (
    ("#0072b2", "#56b4e9", "none"),
    ("#d55e00", "#e69f00", "7 4"),
    ("#009e73", "#2fc79e", "2 4"),
    ("#a4508b", "#cc79a7", "9 3 2 3"),
)

# An image inherits no colours from its page, but can query what the reader prefers.
_STYLE: Final = """
text { font: 13px sans-serif; fill: #24292f; }
.grid { stroke: #8b949e; stroke-opacity: 0.35; }
.curve { fill: none; stroke-width: 2.2; }
%s
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
%s
}
"""


class _Axis:
    """Whole decades, from pixel *first* to pixel *last*."""

    def __init__(self, values: Sequence[float], first: int, last: int) -> None:
        self._low: Final = math.floor(math.log10(min(values)))
        self._high: Final = max(math.ceil(math.log10(max(values))), self._low + 1)
        self._first: Final = first
        self._scale: Final = (last - first) / (self._high - self._low)

    def at(self, value: float) -> float:
        return self._first + (math.log10(value) - self._low) * self._scale

    @property
    def decades(self) -> list[int]:
        return [10**power for power in range(self._low, self._high + 1)]


def log_log(
    curves: Mapping[str, Sequence[tuple[float, float]]], across: str, up: str
) -> str:
    """An SVG of *curves*, by name; *across* and *up* are the labels of the axes.

    All numbers are at least 1.
    """
    points = [point for curve in curves.values() for point in curve]
    x = _Axis([point[0] for point in points], _LEFT, _RIGHT)
    y = _Axis([point[1] for point in points], _BOTTOM, _TOP)
    light, dark = (
        "\n".join(
            f".c{number} {{ stroke: {curve[ground]}; stroke-dasharray: {curve[2]}; }} "
            f".d{number} {{ fill: {curve[ground]}; }}"
            for number, curve in enumerate(_CURVES)
        )
        for ground in (0, 1)
    )
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">',
            f"<style>{_STYLE % (light, dark)}</style>",
            *_axes(x, y, across, up),
            *_drawn(curves, x, y),
            "</svg>\n",
        )
    )


def _axes(x: _Axis, y: _Axis, across: str, up: str) -> Iterator[str]:
    for value in x.decades:
        at = x.at(value)
        yield f'<path class="grid" d="M{at:.0f} {_TOP}V{_BOTTOM}"/>'
        yield _text(at, _BOTTOM + 20, f"{value:,}", "middle")
    for value in y.decades:
        at = y.at(value)
        yield f'<path class="grid" d="M{_LEFT} {at:.0f}H{_RIGHT}"/>'
        yield _text(_LEFT - 8, at + 4, f"{value:,}", "end")
    yield _text((_LEFT + _RIGHT) / 2, _BOTTOM + 45, across, "middle")
    middle = (_TOP + _BOTTOM) / 2
    yield (
        f'<text transform="translate(16 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(up)}</text>'
    )


def _drawn(
    curves: Mapping[str, Sequence[tuple[float, float]]], x: _Axis, y: _Axis
) -> Iterator[str]:
    # Shift names of curves with the same end, so that they do not overlap.
    taken: list[float] = []
    for number, (name, curve) in enumerate(curves.items()):
        style = number % len(_CURVES)
        pixels = [(x.at(across), y.at(up)) for across, up in curve]
        line = " ".join(f"{left:.1f},{top:.1f}" for left, top in pixels)
        yield f'<polyline class="curve c{style}" points="{line}"/>'
        for left, top in pixels:
            yield f'<circle class="d{style}" cx="{left:.1f}" cy="{top:.1f}" r="3.5"/>'
        left, top = pixels[-1]
        for other in sorted(taken):
            if abs(top - other) < 18:
                top = other + 18
        taken.append(top)
        yield _text(left + 12, top + 4, name, "start", f"d{style}")


def _text(left: float, top: float, text: str, anchor: str, style: str = "") -> str:
    return (
        f'<text class="{style}" x="{left:.0f}" y="{top:.0f}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
