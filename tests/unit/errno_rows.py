"""Rows of calls under the rules of the proposals, each with its errno."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from inaccfs import errnos
from inaccfs.shim import hostaccess
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE
from tests.unit.one_file import PAGE, OneFile, mine, one_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.inprocess import Client, File
    from inaccfs.semantics import Semantics

HUGE = 512
PAGES = 2 * HUGE


@dataclass
class World(OneFile):
    # Another client, and the same file as it has it.
    other: Client
    others: File

    def convert(self, start: int, count: int, private: bool = False) -> None:
        self.file.set_memory_attributes(start, count, private)

    def allocate(self, start: int, count: int) -> None:
        self.mount.fallocate(self.fd, FALLOC_FL_KEEP_SIZE, start * PAGE, count * PAGE)

    def write(self, offset: int, length: int) -> None:
        """write(2), as FUSE sends it."""
        inode = self.mount.inode(self.fd)
        data = bytes(length)
        self.mount.loop.run(hostaccess.write(inode, offset, data))

    def make(self, pages: int) -> File:
        """Make one more file."""
        fd = self.mount.memfd_create("more", pages * PAGE)
        found = self.client.file(fd)
        os.close(fd)
        return found


@contextmanager
def world(rules: Semantics) -> Iterator[World]:
    with one_file(rules, PAGES) as made:
        other = made.mount.connect()
        it = World(**vars(made), other=other, others=other.file(made.fd))
        if rules.scope == "range":
            it.file.bind(0, HUGE, lambda start, end: None)
        yield it
        other.close()


class Row(NamedTuple):
    """A call under some rules, and its errno; 0 is success."""

    what: str
    base: type[Semantics]
    number: int
    do: Callable[[World], object]
    # What is done before the call.
    given: Callable[[World], object] = lambda it: None
    rules: dict[str, Any] = {}  # noqa: RUF012 - read only

    def outcome(self) -> str | int:
        """Make the call under the rules; the name of its errno, or the number."""
        with world(mine(self.base, **self.rules)) as it:
            self.given(it)
            found = 0
            try:
                self.do(it)
            except OSError as exc:
                found = exc.errno or -1
            return errnos.NAMES.get(found, found)


def poisoned(it: World) -> None:
    it.file.get_pfn(0)
    it.file.memory_failure(0)
