"""A file of a mount, as the tests of its control socket use it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import inaccfs
from inaccfs import syscalls
from tests.mount.support import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """fallocate(2); the errno, or 0."""
    try:
        syscalls.fallocate(fd, mode, offset, length)
    except OSError as exc:
        return exc.errno or 0
    return 0


@contextmanager
def guest(mount: inaccfs.Mount, size: int = MIB, name: str = "guest") -> Iterator[int]:
    """A file of *size* bytes on the mount; an O_RDWR fd of it."""
    fd = os.open(mount.path / name, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)
