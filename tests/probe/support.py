"""What the tests of the probe have in common."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

import inaccfs
from inaccfs.probe.attempts import Row, Subject, rows

if TYPE_CHECKING:
    from collections.abc import Callable

TOP = str(Path(inaccfs.__file__).parent.parent)
PAGE = mmap.PAGESIZE
SIZE = 4 * PAGE


def row(call: Callable[[Subject], str | None]) -> Row:
    return rows("group", {"name": call})[0]
