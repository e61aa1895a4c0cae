"""What the tests of `InaccessibleFile` have in common: sizes, and a file's pages."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from inaccfs.shim.allocating import SHORT_BYTES

if TYPE_CHECKING:
    from inaccfs.shim.file import InaccessibleFile

PAGE = 4096
LONG = SHORT_BYTES + PAGE


def pages(file: InaccessibleFile) -> int:
    return os.fstat(file.fd).st_blocks * 512 // PAGE
