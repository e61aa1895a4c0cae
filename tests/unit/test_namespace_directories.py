"""Directories of a namespace, in any depth and number: which have an fd."""

from __future__ import annotations

import inspect
import os
import sys
from typing import TYPE_CHECKING

import pytest

from inaccfs.fuse import inodes
from inaccfs.syscalls import RENAME_EXCHANGE
from tests.unit.nodes import create, forget_all, look, open_fds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node


def _deep(namespace: Namespace, tree: Path, depth: int) -> list[Node]:
    """A tree of *depth* directories in one another, all looked up."""
    nodes = [namespace.inodes.root]
    fd = os.open(tree, os.O_PATH)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
        nodes.append(look(namespace, "d", nodes[-1]))
    os.close(fd)
    return nodes[1:]


@pytest.fixture
def _shallow_stack() -> Iterator[None]:
    """Too little for one stack frame for each directory of a deep tree."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("_shallow_stack")
def test_a_deep_tree_is_reached_and_forgotten_without_recursion(
    namespace: Namespace, tree: Path
) -> None:
    before = open_fds()
    nodes = _deep(namespace, tree, 600)
    # From the top: only the last forget can free any of them.
    for node in nodes[:-1]:
        namespace.inodes.forget(node.ino, 1)
    assert namespace.inodes.attributes(nodes[-1]).st_ino == nodes[-1].ino
    assert len(namespace.inodes.nodes) == 601
    namespace.inodes.forget(nodes[-1].ino, 1)
    assert set(namespace.inodes.nodes) == {1}
    assert open_fds() == before


def test_a_deep_tree_is_reached_after_its_fds_were_closed(
    namespace: Namespace, tree: Path
) -> None:
    nodes = _deep(namespace, tree, 600)
    namespace.inodes.dir_fd(nodes[0])
    before = open_fds()
    for node in (nodes[-1], nodes[299], nodes[598]):
        assert os.fstat(namespace.inodes.dir_fd(node)).st_ino == node.ino
    namespace.inodes.dir_fd(nodes[0])
    assert open_fds() <= before + 2


def test_no_more_directories_are_open_than_there_is_room_for(
    namespace: Namespace, tree: Path
) -> None:
    before = open_fds()
    nodes = []
    for i in range(400):
        (tree / f"d{i}").mkdir()
        nodes.append(look(namespace, f"d{i}"))
        assert os.fstat(namespace.inodes.dir_fd(nodes[-1])).st_ino == nodes[-1].ino
    assert open_fds() <= before + inodes._DIRECTORY_FDS + 1
    for node in nodes:
        assert os.fstat(namespace.inodes.dir_fd(node)).st_ino == node.ino
    forget_all(namespace)
    assert open_fds() == before


def test_the_directory_used_last_keeps_its_fd(
    namespace: Namespace, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rename(2) needs two directories at once, even if there is room for one."""
    monkeypatch.setattr(inodes, "_DIRECTORY_FDS", 1)
    nodes = []
    for i in range(4):
        (tree / f"d{i}" / "x").mkdir(parents=True)
        nodes.append(look(namespace, f"d{i}"))
    for node in nodes:
        namespace.inodes.dir_fd(node)
    inner = [(tree / f"d{i}" / "x").stat().st_ino for i in range(4)]
    for a, b in ((0, 3), (1, 2), (0, 1)):
        namespace.rename(nodes[a], b"x", nodes[b], b"x", RENAME_EXCHANGE)
    assert [(tree / f"d{i}" / "x").stat().st_ino for i in range(4)] == [
        inner[2],
        inner[3],
        inner[1],
        inner[0],
    ]


def test_the_directory_used_longest_ago_loses_its_fd(
    namespace: Namespace, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inodes, "_DIRECTORY_FDS", 2)
    nodes = []
    for i in range(3):
        (tree / f"d{i}").mkdir()
        nodes.append(look(namespace, f"d{i}"))
    for i in (0, 1, 0, 2, 0):
        namespace.inodes.dir_fd(nodes[i])
    assert [node.fd >= 0 for node in nodes] == [True, False, True]


def test_the_fd_of_a_removed_directory_is_not_closed_for_room(
    namespace: Namespace, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inodes, "_DIRECTORY_FDS", 1)
    for i in range(4):
        (tree / f"d{i}").mkdir()
    removed = look(namespace, "d0")
    namespace.inodes.dir_fd(removed)
    namespace.rmdir(namespace.inodes.root, b"d0")
    for i in range(1, 4):
        namespace.inodes.dir_fd(look(namespace, f"d{i}"))
    assert namespace.inodes.attributes(removed).st_nlink == 0


def test_close_leaves_no_fd(namespace: Namespace, tree: Path) -> None:
    before = open_fds()
    _deep(namespace, tree, 20)
    create(namespace, "open")
    create(namespace, "gone")
    namespace.unlink(namespace.inodes.root, b"gone")
    namespace.close()
    assert open_fds() == before
