"""The files of one execution, their numbers, and the sizes that they have had."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.explore import keys
from inaccfs.explore.names import MOST_PAGES

if TYPE_CHECKING:
    from inaccfs.explore.schedule import Schedule
    from inaccfs.inprocess import Mount
    from inaccfs.shim.file import InaccessibleFile

# The pages that are watched of a file that has no size yet.
_UNSIZED: Final = 4


class Sizes(NamedTuple):
    """The sizes that a file has had, in pages."""

    # A page past this never had memory.
    most: int
    # It had these pages since the actors began.
    least: int


class Files:
    """The files of a scenario. Each list is by the file's number."""

    def __init__(self, schedule: Schedule, mount: Mount) -> None:
        self._schedule: Final = schedule
        self._mount: Final = mount
        # The number of each file, by st_ino.
        self.numbers: Final[dict[int, int]] = {}
        self.fds: Final[list[int]] = []
        self.inodes: Final[list[InaccessibleFile]] = []
        self.sizes: Final[list[Sizes]] = []

    def add(self, fd: int, inode: InaccessibleFile, pages: int) -> int:
        """Add a file; returns its number."""
        number = len(self.fds)
        self.numbers[os.fstat(fd).st_ino] = number
        self.fds.append(fd)
        self.inodes.append(inode)
        self.sizes.append(Sizes(pages or _UNSIZED, pages))
        return number

    def number(self, fd: int) -> int:
        """The number of a file. ValueError if it is not one of the scenario's."""
        try:
            return self.inodes.index(self._mount.inode(fd))
        except OSError:
            # The scenario is wrong: no rules refuse this.
            raise ValueError(f"fd {fd} is no file of the scenario") from None

    def always_had(self, file: int) -> int:
        """How many pages a file has had since the actors began."""
        self._schedule.touch(keys.size(file), False)
        return self.sizes[file].least


def check_size(pages: int) -> None:
    """Raise ValueError if no file may have so many pages."""
    if not 0 <= pages <= MOST_PAGES:
        raise ValueError(f"a file of {pages} pages: give 0 to {MOST_PAGES}")
