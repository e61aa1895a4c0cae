"""A file of a mount, as the tests of the clients use it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inaccfs.syscalls import PUNCH, fallocate
from tests.mount import support
from tests.mount.support import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import inaccfs


def punch(fd: int, first: int = 0, pages: int = 1) -> None:
    """Punch a hole through the mount."""
    fallocate(fd, PUNCH, first * PAGE, pages * PAGE)


@contextmanager
def guest(
    mount: inaccfs.Mount, name: str = "guest0", pages: int = 256
) -> Iterator[int]:
    """A new file of the mount; an fd of it."""
    with support.opened(mount.path / name, os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, pages * PAGE)
        yield fd
