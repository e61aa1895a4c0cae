"""All of the table of docs/exploring.md that a search has come to the end of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inaccfs.explore.search import Limits
from tests import explore_page

if TYPE_CHECKING:
    from tests.explore_page import Place


@pytest.mark.parametrize("place", explore_page.parse(explore_page.PAGE.read_text()))
def test_the_table_says_what_is_found(place: Place) -> None:
    if place.version not in explore_page.distinct():
        pytest.skip("the search of another version is the same")
    wanted = explore_page.parse(explore_page.PAGE.read_text())[place]
    if wanted.endswith("†"):
        pytest.skip("the page says that there was not the time for all")
    assert explore_page.cell(*place, Limits(seconds=None)) == wanted
