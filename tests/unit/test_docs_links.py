"""Every link of a page leads to a file that exists, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

TOP: Final = Path(__file__).parents[2]

PAGES: Final = [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]

_LINK: Final = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def _prose(page: Path) -> str:
    """The text of a page without its programs and their output."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$|`[^`\n]*`", "", text, flags=re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    ]
    # Of equal headings the second has -1 at its end, and so on.
    return {
        name if not (same := found[:at].count(name)) else f"{name}-{same}"
        for at, name in enumerate(found)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_no_link_is_dead(page: Path) -> None:
    dead = []
    for match in _LINK.finditer(_prose(page)):
        link = match[1] or match[2]
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    assert dead == []


def test_every_page_is_in_the_index() -> None:
    """The index lists all pages, for the site and for its readers."""
    index = (TOP / "docs" / "index.md").read_text()
    listed = set(
        re.findall(r"^([\w/-]+)$", index.partition("```{toctree}")[2], re.MULTILINE)
    )
    pages = {
        str(page.relative_to(TOP / "docs").with_suffix(""))
        for page in PAGES
        if page.is_relative_to(TOP / "docs")
    }
    assert listed == pages - {"index"}
