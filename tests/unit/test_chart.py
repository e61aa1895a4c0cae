"""The plots of experiments are well-formed, and show what they are given."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise

from inaccfs.experiments import chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(curves: dict[str, list[tuple[float, float]]]) -> ET.Element:
    return ET.fromstring(chart.log_log(curves, "across & more", "µs"))


def test_a_decade_is_as_long_as_any_other() -> None:
    root = drawn({"a <list>": [(1, 30), (10, 300), (100, 3000), (1000, 30_000)]})
    (line,) = root.iter(f"{SVG}polyline")
    points = [
        tuple(map(float, one.split(","))) for one in line.attrib["points"].split()
    ]
    across = [right[0] - left[0] for left, right in pairwise(points)]
    up = [left[1] - right[1] for left, right in pairwise(points)]
    assert max(across) - min(across) < 0.5 < min(across)
    assert max(up) - min(up) < 0.5 < min(up)


def test_axes_and_curves_have_their_names() -> None:
    root = drawn({"a <list>": [(1, 30), (10, 300)], "a tree": [(1, 30), (10, 30)]})
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"across & more", "µs", "a <list>", "a tree"} <= set(texts)
    assert {"1", "10", "100", "1,000"} <= set(texts)


def test_names_of_curves_that_end_at_one_place_do_not_cover_each_other() -> None:
    abc = set("abc")
    end = [(1.0, 30.0), (10.0, 300.0)]
    root = drawn(dict.fromkeys(abc, end))
    tops = [
        float(one.attrib["y"]) for one in root.iter(f"{SVG}text") if one.text in abc
    ]
    assert len(tops) == 3
    assert min(b - a for a, b in pairwise(tops)) >= 17
