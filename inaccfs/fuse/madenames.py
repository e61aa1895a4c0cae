"""Names that have been made in the backing, and have to go again if the rest fails."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def undone(remove: Callable[..., None], name: bytes, dir_fd: int) -> Iterator[None]:
    """If the block fails, remove a name that has just been made."""
    try:
        yield
    except BaseException:
        remove_made(remove, name, dir_fd)
        raise


def remove_made(remove: Callable[..., None], name: bytes, dir_fd: int) -> None:
    """*remove* a name: the kernel may remember for a day that there is none."""
    with suppress(FileNotFoundError):
        remove(name, dir_fd=dir_fd)
