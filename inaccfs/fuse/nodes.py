"""`Node`: one inode, and the fd of the backing that it may have."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from inaccfs.shim.file import InaccessibleFile

log = logging.getLogger(__name__)

CloseFd = Callable[[int, "InaccessibleFile | None"], None]
"""Closes the fd of an inode, and drops the pages fetched of its file, if it is one."""


def close_now(fd: int, file: InaccessibleFile | None) -> None:
    """A `CloseFd` that closes before it returns. Freeing gigabytes takes long.

    Never raises: close(2) closes the fd even if it fails.
    """
    try:
        if file is not None:
            file.close()
    except Exception:
        log.exception("bug in dropping the pages of a file")
    try:
        os.close(fd)
    except OSError as exc:
        log.warning("closing a file of the backing: %s", exc.strerror)


class Node:
    """One inode. Only `Inodes`, `Opens` and `OpenFile` change its fields."""

    __slots__ = (
        "borrowed",
        "children",
        "fd",
        "file",
        "generation",
        "ino",
        "is_dir",
        "links",
        "lookups",
        "name",
        "opens",
        "parent",
    )

    def __init__(self, ino: int, generation: int, *, is_dir: bool) -> None:
        self.ino: Final = ino
        # Distinguishes inodes that had the same number one after the other.
        self.generation: Final = generation
        self.is_dir: Final = is_dir
        # One name that leads here; None when none is known, and then fd >= 0.
        self.parent: Node | None = None
        self.name = b""
        # Further names: hard links that the kernel has looked up.
        self.links: set[tuple[Node, bytes]] | None = None
        # References that the kernel holds: LOOKUPs minus FORGETs.
        self.lookups = 0
        # How many nodes have this directory in `parent` or `links`.
        self.children = 0
        # An fd of the inode, or -1. If `file` is not set, it is O_PATH.
        self.fd = -1
        # The number of opens; and how many of them need `file` to stay unchanged.
        self.opens = 0
        self.borrowed = 0
        # Set while the node is open or must stay. A node that is open but not borrowed
        # may lack it when fds are short: see Inodes.make_room().
        self.file: InaccessibleFile | None = None

    @property
    def must_stay(self) -> bool:
        """Whether the shim has state of its pages, so that the node must stay."""
        return self.file is not None and self.file.must_stay


def can_be_let_go(node: Node) -> bool:
    """Whether an open node can do without an fd until it is used again."""
    file = node.file
    return (
        file is not None
        and node.opens > 0
        and not node.borrowed
        and node.parent is not None
        and file.is_plain
        and not file.must_stay
    )


def let_go(node: Node) -> None:
    """Close the fd of an open node. It stays open to its callers."""
    fd, node.fd, node.file = node.fd, -1, None
    os.close(fd)
