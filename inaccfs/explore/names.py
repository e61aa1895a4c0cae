"""Names of frames and of contents, for people; and sizes that the explorer has."""

from __future__ import annotations

from typing import Final

from inaccfs.shim.simulated import FIRST_PFN

STAMP: Final = 8
"""So many bytes of a page are read and written."""


MOST_PAGES: Final = 512
"""The most pages of a file. Each page is tracked by itself."""


def frame(pfn: int) -> str:
    """The name of a frame, for people."""
    return f"#{pfn - FIRST_PFN}"


def shown(value: bytes) -> str:
    """The content of a page, for people."""
    text = value.rstrip(b"\0")
    return repr(text.decode(errors="replace")) if text else "zeros"
