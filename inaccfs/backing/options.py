"""The options of a private tmpfs, and sizes as tmpfs(5) writes them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final

from inaccfs.errors import OptionError
from inaccfs.words import natural, quoted

HUGE_CHOICES: Final = ("never", "always", "within_size", "advise")

_SIZE: Final = re.compile(r"[0-9]+(?:[kmgtpeKMGTPE]|%)?")


def parse_size(name: str, size: str) -> int:
    """Convert *size* to bytes: a number with k, m, g, t, p or e, or % of the memory.

    Raises:
        OptionError: not a size, or too large; the message begins with *name*.
    """
    if not _SIZE.fullmatch(size):
        raise OptionError(
            f"{name} {quoted(size)} is not a size: give bytes, or a number with "
            "k, m, g, t or %, as in 512m"
        )
    unit = "kmgtpe".find(size[-1].lower()) + 1
    number = natural(size.rstrip("kmgtpeKMGTPE%"))
    if number is not None and size.endswith("%"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        number = number * memory // 100
    elif number is not None:
        number <<= 10 * unit
    if number is None or number >= 1 << 63:
        raise OptionError(f"{name} {quoted(size)} is more than a file system can have")
    return number


@dataclass(frozen=True, slots=True)
class TmpfsOptions:
    """Mount options of a private tmpfs, tmpfs(5). None leaves one to the kernel."""

    size: str | None = None
    huge: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            parse_size("size", self.size)
        if self.huge is not None and self.huge not in HUGE_CHOICES:
            raise OptionError(
                f"huge {quoted(self.huge)} is not one of {', '.join(HUGE_CHOICES)}"
            )

    def as_mount_options(self) -> dict[str, str]:
        """The options as fsconfig(2) takes them."""
        found = {
            "size": self.size,
            "huge": self.huge,
            "mode": None if self.mode is None else f"{self.mode:o}",
            "uid": None if self.uid is None else str(self.uid),
            "gid": None if self.gid is None else str(self.gid),
        }
        return {key: value for key, value in found.items() if value is not None}
