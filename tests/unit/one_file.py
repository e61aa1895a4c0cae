"""One file of a mount in this process, under rules of a test's choice."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inaccfs import errnos
from inaccfs.inprocess import Mount
from inaccfs.semantics import V8
from inaccfs.syscalls import PUNCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.inprocess import Client, File
    from inaccfs.semantics import Semantics

PAGE = 4096


def mine(base: type[Semantics] = V8, /, **chosen: object) -> Semantics:
    """A version, but for some rules."""
    made: Semantics = type("Mine", (base,), chosen)()
    return made


def outcome(call: Callable[..., None], *arguments: int) -> str:
    """ "ok", or the errno's name."""
    try:
        call(*arguments)
    except OSError as exc:
        return errnos.NAMES[exc.errno or 0]
    return "ok"


@dataclass
class OneFile:
    """A mount, an fd of its file, and a client that has it open."""

    mount: Mount
    fd: int
    client: Client
    file: File

    @property
    def blocks(self) -> int:
        """How many pages of the file have memory."""
        return os.fstat(self.fd).st_blocks * 512 // PAGE

    def punch(self, start: int, end: int) -> None:
        """Punch pages."""
        self.mount.fallocate(self.fd, PUNCH, start * PAGE, (end - start) * PAGE)


@contextmanager
def one_file(
    semantics: Semantics | None = None, pages: int = 16, **options: Any
) -> Iterator[OneFile]:
    """A file of *pages*; *options* are those of `Mount`. All is closed at the end."""
    with Mount(semantics, **options) as mount:
        fd = mount.memfd_create("file", pages * PAGE)
        client = mount.connect()
        yield OneFile(mount, fd, client, client.file(fd))
        client.close()
        os.close(fd)
