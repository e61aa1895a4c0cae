"""Removes names that were just made in the backing, if a later step fails."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def undone(remove: Callable[..., None], name: bytes, dir_fd: int) -> Iterator[None]:
    """If the with block fails, remove a name that was just made."""
    try:
        yield
    except BaseException:
        remove_made(remove, name, dir_fd)
        raise


def remove_made(remove: Callable[..., None], name: bytes, dir_fd: int) -> None:
    """Call *remove*: the kernel may remember for a day that the name does not exist."""
    with suppress(FileNotFoundError):
        remove(name, dir_fd=dir_fd)
