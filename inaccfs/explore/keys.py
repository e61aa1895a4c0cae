"""The keys of what several modules track: see `inaccfs.explore.tracking`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inaccfs.explore.state import Key


def page(file: int, page: int) -> Key:
    """The key of a page of a file, and of the frame that it has."""
    return "page", file, page


def size(file: int) -> Key:
    """The key of the size of a file."""
    return "size", file, 0


def frozen(file: int) -> Key:
    """The key of whether a file is frozen, and by which client."""
    return "frozen", file


def kind(file: int, page: int) -> Key:
    """The key of whether a page of a file is private."""
    return "kind", file, page


def cell(file: int, page: int) -> Key:
    """The key of the content of a page of a file, as guests see it."""
    return "cell", file, page


def references(pfn: int) -> Key:
    """The key of the references to a frame."""
    return "references", pfn
