"""Renaming in a namespace: nodes move with their names, and exchange them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from inaccfs.fuse import inodes
from inaccfs.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.unit.fakes import refused
from tests.unit.nodes import forget_all, look, open_fds

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.fuse.namespace import Namespace


def test_rename_moves_a_node_with_its_name(namespace: Namespace, tree: Path) -> None:
    (tree / "d").mkdir()
    (tree / "a").touch()
    node, directory = look(namespace, "a"), look(namespace, "d")
    namespace.rename(namespace.inodes.root, b"a", directory, b"b", 0)
    assert (node.parent, node.name) == (directory, b"b")
    assert namespace.inodes.attributes(node).st_ino == node.ino
    with refused(errno.ENOENT):
        look(namespace, "a")


def test_rename_onto_a_file_that_is_known_keeps_that_file(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "a").touch()
    (tree / "b").touch()
    moved, replaced = look(namespace, "a"), look(namespace, "b")
    namespace.rename(namespace.inodes.root, b"a", namespace.inodes.root, b"b", 0)
    assert look(namespace, "b") is moved
    assert namespace.inodes.attributes(replaced).st_nlink == 0
    forget_all(namespace)
    assert set(namespace.inodes.nodes) == {1}


def test_noreplace_leaves_both(namespace: Namespace, tree: Path) -> None:
    (tree / "a").touch()
    (tree / "b").touch()
    moved, other = look(namespace, "a"), look(namespace, "b")
    before = open_fds()
    with refused(errno.EEXIST):
        namespace.rename(
            namespace.inodes.root, b"a", namespace.inodes.root, b"b", RENAME_NOREPLACE
        )
    assert open_fds() == before
    assert (look(namespace, "a"), look(namespace, "b")) == (moved, other)


def test_exchange_swaps_a_file_and_a_directory(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "d").mkdir()
    (tree / "d" / "f").touch()
    (tree / "e").mkdir()
    outer, other = look(namespace, "d"), look(namespace, "e")
    file = look(namespace, "f", outer)
    namespace.rename(outer, b"f", namespace.inodes.root, b"e", RENAME_EXCHANGE)
    assert (file.parent, file.name) == (namespace.inodes.root, b"e")
    assert (other.parent, other.name) == (outer, b"f")
    for node in (file, other):
        assert namespace.inodes.attributes(node).st_ino == node.ino
    forget_all(namespace)
    assert set(namespace.inodes.nodes) == {1}


@pytest.mark.parametrize(
    ("names", "flags", "error"),
    [
        pytest.param(("a", "a/b"), RENAME_EXCHANGE, errno.EINVAL, id="a/b for a"),
        pytest.param(("a/b", "a"), RENAME_EXCHANGE, errno.EINVAL, id="a for a/b"),
        pytest.param(("a", "none"), RENAME_EXCHANGE, errno.ENOENT, id="for nothing"),
        pytest.param(("a", "c"), RENAME_NOREPLACE, errno.EEXIST, id="not replaced"),
        pytest.param(("c", "a"), 0, errno.ENOTEMPTY, id="onto what is not empty"),
    ],
)
def test_a_rename_that_fails_leaves_directories_as_they_were(
    namespace: Namespace,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, str],
    flags: int,
    error: int,
) -> None:
    """Including nodes with an fd: a closed fd is not used, and not closed again."""
    (tree / "a" / "b" / "x").mkdir(parents=True)
    (tree / "c").mkdir()
    before = open_fds()
    outer, other = look(namespace, "a"), look(namespace, "c")
    inner = look(namespace, "b", outer)
    known = (outer, inner, other)
    for node in known:
        namespace.inodes.dir_fd(node)
    places = [
        (
            outer if "/" in name else namespace.inodes.root,
            name.rpartition("/")[2].encode(),
        )
        for name in names
    ]
    with refused(error):
        namespace.rename(*places[0], *places[1], flags)
    for node in known:
        # The list of fds that can be closed has exactly the nodes with an fd.
        assert (node.fd >= 0) is (node.ino in namespace.inodes._open_dirs)
        assert os.fstat(namespace.inodes.dir_fd(node)).st_ino == node.ino
    monkeypatch.setattr(inodes, "_DIRECTORY_FDS", 0)
    namespace.inodes.dir_fd(namespace.inodes.root)
    assert open_fds() == before
    assert look(namespace, "x", inner).is_dir
    forget_all(namespace)
    assert open_fds() == before


@pytest.mark.parametrize(("goes", "stays"), [("a", "b"), ("b", "a")])
def test_rename_between_two_names_of_one_file_does_nothing(
    namespace: Namespace, tree: Path, goes: str, stays: str
) -> None:
    (tree / "a").touch()
    os.link(tree / "a", tree / "b")
    node = look(namespace, "a")
    assert look(namespace, "b") is node
    namespace.rename(namespace.inodes.root, b"a", namespace.inodes.root, b"b", 0)
    assert sorted(os.listdir(tree)) == ["a", "b"]
    # Either name still leads to the node.
    os.unlink(tree / goes)
    assert namespace.inodes.attributes(node).st_nlink == 1
    assert look(namespace, stays) is node


def test_a_directory_moves_with_the_children_that_are_known(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "f").touch()
    (tree / "to").mkdir()
    outer, to = look(namespace, "a"), look(namespace, "to")
    inner = look(namespace, "b", outer)
    file = look(namespace, "f", inner)
    namespace.rename(namespace.inodes.root, b"a", to, b"c", 0)
    assert namespace.inodes.attributes(file).st_ino == file.ino
    assert look(namespace, "f", look(namespace, "b", look(namespace, "c", to))) is file


def test_rename_from_a_directory_that_only_this_name_holds(
    namespace: Namespace, tree: Path
) -> None:
    """The directory is forgotten, but the kernel may still move its child."""
    (tree / "d").mkdir()
    (tree / "d" / "f").touch()
    directory = look(namespace, "d")
    file = look(namespace, "f", directory)
    namespace.inodes.forget(directory.ino, 1)
    namespace.rename(directory, b"f", namespace.inodes.root, b"f", 0)
    assert namespace.inodes.attributes(file).st_ino == file.ino
    assert set(namespace.inodes.nodes) == {1, file.ino}
