"""The cells of the table of docs/exploring.md whose search was complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from inaccfs.explore.search import Limits
from tests import explore_page
from tests.hard.budget import some

if TYPE_CHECKING:
    from tests.explore_page import Place


WANTED: Final = explore_page.parse(explore_page.PAGE.read_text())

# Versions in one column have the same search; a † marks an incomplete search.
PLACES: Final = [
    place
    for place, wanted in WANTED.items()
    if place.version in explore_page.distinct() and not wanted.endswith("†")
]


@pytest.mark.parametrize("place", some(PLACES, 3), ids=str)
def test_the_table_says_what_is_found(place: Place) -> None:
    assert explore_page.cell(*place, Limits(seconds=None)) == WANTED[place]
