"""Changes in a namespace's backing that bypass the mount."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from inaccfs.fuse import inodes
from tests.unit.fakes import refused
from tests.unit.nodes import ME, create, forget_all, look, open_fds

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node


def test_a_file_whose_name_leads_elsewhere_now_is_stale(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "f").touch()
    node = look(namespace, "f")
    os.rename(tree / "f", tree / "kept")
    with refused(errno.ESTALE):
        namespace.inodes.attributes(node)
    (tree / "f").touch()
    with refused(errno.ESTALE):
        namespace.inodes.attributes(node)
    with refused(errno.ESTALE):
        namespace.opens.open(node, os.O_RDWR)


@pytest.mark.parametrize("successor", ["nothing", "file", "directory", "symlink"])
def test_a_directory_whose_name_leads_elsewhere_now_is_stale(
    namespace: Namespace, tree: Path, successor: str
) -> None:
    """The errno is not ENOENT, which would mean the name in the directory."""
    (tree / "d").mkdir()
    (tree / "d" / "f").touch()
    directory = look(namespace, "d")
    os.rename(tree / "d", tree / "kept")
    match successor:
        case "file":
            (tree / "d").touch()
        case "directory":
            (tree / "d").mkdir()
        case "symlink":
            (tree / "d").symlink_to("kept")
    before = open_fds()
    with refused(errno.ESTALE):
        look(namespace, "f", directory)
    assert open_fds() == before


def test_a_directory_that_was_moved_is_found_under_its_new_name(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "d").mkdir()
    (tree / "to").mkdir()
    directory = look(namespace, "d")
    os.rename(tree / "d", tree / "to" / "e")
    assert look(namespace, "e", look(namespace, "to")) is directory
    assert namespace.inodes.attributes(directory).st_ino == directory.ino
    forget_all(namespace)
    assert set(namespace.inodes.nodes) == {1}


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("fds", [1, 256])
def test_a_directory_that_is_below_its_own_child_now(
    namespace: Namespace,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    depth: int,
    fds: int,
) -> None:
    """As after "mv a/b b; mv a b/a" in the backing: a walk up the tree must end."""
    monkeypatch.setattr(inodes, "_DIRECTORY_FDS", fds)
    (tree / "a" / "/".join(["b"] * depth)).mkdir(parents=True)
    (tree / "elsewhere").mkdir()
    outer = inner = look(namespace, "a")
    for _ in range(depth):
        inner = look(namespace, "b", inner)
    namespace.inodes.dir_fd(inner)
    os.rename(tree / "a" / "/".join(["b"] * depth), tree / "b")
    os.rename(tree / "a", tree / "b" / "a")
    # The kernel still has the inner one, and finds the outer one in it.
    assert look(namespace, "a", inner) is outer
    assert _ancestors(outer)[0] is inner
    # More directories, so that fds are closed for room.
    for name in ("elsewhere", "b"):
        with suppress(OSError):
            namespace.inodes.dir_fd(look(namespace, name))
    assert look(namespace, "b") is inner
    assert look(namespace, "a", inner) is outer
    for node in (inner, outer):
        assert os.fstat(namespace.inodes.dir_fd(node)).st_ino == node.ino
    assert _ancestors(outer) == [inner, namespace.inodes.root]
    forget_all(namespace)
    assert set(namespace.inodes.nodes) == {1}


def test_a_directory_without_a_known_path_is_stale(
    namespace: Namespace, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fd was closed for room before it was found in its new place."""
    (tree / "a" / "b").mkdir(parents=True)
    outer = look(namespace, "a")
    inner = look(namespace, "b", outer)
    namespace.inodes.dir_fd(inner)
    os.rename(tree / "a" / "b", tree / "b")
    os.rename(tree / "a", tree / "b" / "a")
    assert look(namespace, "a", inner) is outer
    assert _ancestors(outer) == [inner]
    monkeypatch.setattr(inodes, "_DIRECTORY_FDS", 0)
    namespace.inodes.dir_fd(namespace.inodes.root)
    for node in (inner, outer):
        with refused(errno.ESTALE):
            namespace.inodes.dir_fd(node)
    # It is stale until it is looked up.
    assert look(namespace, "b") is inner
    assert look(namespace, "a", inner) is outer


def _ancestors(node: Node) -> list[Node]:
    found = []
    while node.parent is not None:
        node = node.parent
        assert node not in found
        found.append(node)
    return found


def test_a_cycle_does_not_lose_a_directory_that_only_its_child_kept(
    namespace: Namespace, tree: Path
) -> None:
    """The kernel has forgotten the outer one when it finds it in the inner one."""
    (tree / "a" / "b").mkdir(parents=True)
    outer = look(namespace, "a")
    inner = look(namespace, "b", outer)
    namespace.inodes.dir_fd(inner)
    namespace.inodes.forget(outer.ino, 1)
    os.rename(tree / "a" / "b", tree / "b")
    os.rename(tree / "a", tree / "b" / "a")
    found = look(namespace, "a", inner)
    assert namespace.inodes[found.ino] is found
    assert namespace.inodes.attributes(found).st_ino == found.ino
    forget_all(namespace)
    assert set(namespace.inodes.nodes) == {1}


def test_one_name_that_went_does_not_hide_the_others(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "a").touch()
    os.link(tree / "a", tree / "b")
    node = look(namespace, "a")
    look(namespace, "b")
    os.unlink(tree / "a")
    assert namespace.inodes.attributes(node).st_nlink == 1
    with namespace.inodes.magic_path(node) as path:
        assert os.stat(path).st_ino == node.ino


def test_a_number_that_comes_back_as_another_type_is_another_node(
    namespace: Namespace, tree: Path
) -> None:
    """The count of lookups that the kernel has not forgotten yet is not lost."""
    (tree / "was").touch()
    (tree / "now").mkdir()
    old = look(namespace, "was")
    look(namespace, "was")
    # The stat of a directory that got the file's number.
    fields = list((tree / "now").stat())
    fields[stat.ST_INO] = old.ino
    attributes = _with_device(os.stat_result(fields), tree)
    new = namespace.inodes.node_at(namespace.inodes.root, b"now", attributes)
    assert new is not old
    assert new.is_dir
    assert new.generation != old.generation
    assert new.lookups == 2
    namespace.inodes.entry(new, attributes)
    namespace.inodes.forget(old.ino, 2)
    assert namespace.inodes.nodes[old.ino] is new
    namespace.inodes.forget(old.ino, 1)
    assert set(namespace.inodes.nodes) == {1}


def _with_device(attributes: os.stat_result, tree: Path) -> os.stat_result:
    fields = list(attributes)
    fields[stat.ST_DEV] = tree.stat().st_dev
    return os.stat_result(fields)


def test_another_file_system_below_is_refused(
    namespace: Namespace, tmp_path: Path
) -> None:
    """Its inode numbers would collide with the backing's."""
    with refused(errno.EXDEV):
        namespace.inodes.node_at(namespace.inodes.root, b"other", tmp_path.stat())


def test_create_over_a_name_that_came_from_outside(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "f").touch()
    with refused(errno.ESTALE):
        create(namespace, "f")
    with refused(errno.EEXIST):
        namespace.create(namespace.inodes.root, b"f", os.O_RDWR | os.O_EXCL, 0o600, *ME)
