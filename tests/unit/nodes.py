"""Nodes of a namespace, which are found and made as the kernel does it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node


ME = os.geteuid(), os.getegid()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def look(namespace: Namespace, name: str, parent: Node | None = None) -> Node:
    """Look a name up, as the kernel does before any other request."""
    entry = namespace.lookup(parent or namespace.inodes.root, name.encode())
    return namespace.inodes[entry.nodeid]


def create(namespace: Namespace, name: str, parent: Node | None = None) -> Node:
    entry = namespace.create(
        parent or namespace.inodes.root, name.encode(), os.O_RDWR, 0o600, *ME
    )
    return namespace.inodes[entry.nodeid]


def forget_all(namespace: Namespace) -> None:
    for node in list(namespace.inodes.nodes.values()):
        namespace.inodes.forget(node.ino, node.lookups)
