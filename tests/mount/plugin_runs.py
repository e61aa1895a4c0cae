"""Runs of pytest for the tests of the plugin, and their output."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from textwrap import dedent
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pytest

# For a package that was installed before it had the entry point.
LOADED: Final = (
    ()
    if any(point.name == "inaccfs" for point in entry_points(group="pytest11"))
    else ("-p", "inaccfs.pytest_plugin")
)
STRICT: Final = (*LOADED, "--strict-markers", "-p", "no:cacheprovider", "-W", "error")
PLAIN: Final = (*STRICT, "-p", "no:trio")

IMPORTS: Final = "import os, signal, threading\nimport pytest\n"


def run_tests(
    pytester: pytest.Pytester, source: str, *options: str
) -> pytest.RunResult:
    """Run the tests of *source* in a process of their own."""
    pytester.makepyfile(IMPORTS + dedent(source))
    return pytester.runpytest_subprocess(*options)


def report_of(output: str, title: str) -> str:
    """The part of a run's output that has this headline."""
    _, found, rest = output.partition(f"{title} _")
    assert found, output
    return re.split(r"\n(?:_{3,} .* _{3,}|={3,} .* ={3,})\n", rest)[0]
