"""The experiments that take longest say what their pages say."""

from __future__ import annotations

import pytest

from tests.hard.budget import some
from tests.mount import support, test_experiments


@pytest.mark.parametrize("name", some(test_experiments.LONG, 1))
def test_an_experiment_says_what_its_page_says(name: str) -> None:
    if reason := support.why_no_fuse():
        pytest.skip(reason)
    test_experiments.check(name)
