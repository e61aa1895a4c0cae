"""The namespace over a real tmpfs directory: nodes, names and fds."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from inaccfs.syscalls import UTIME_OMIT
from tests.unit.fakes import fallocated_now, refused
from tests.unit.nodes import ME, create, forget_all, look, open_fds

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.wire import Entry


# --- lookup and forget ------------------------------------------------------------


def test_a_node_lives_from_its_first_lookup_to_its_last_forget(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "a").touch()
    node = look(namespace, "a")
    assert look(namespace, "a") is node
    namespace.inodes.forget(node.ino, 1)
    assert namespace.inodes.nodes[node.ino] is node
    namespace.inodes.forget(node.ino, 1)
    assert set(namespace.inodes.nodes) == {1}


def test_names_cost_no_fds(namespace: Namespace, tree: Path) -> None:
    before = open_fds()
    for i in range(50):
        (tree / f"f{i}").touch()
        look(namespace, f"f{i}")
    assert open_fds() == before


def test_the_root_is_never_forgotten(namespace: Namespace) -> None:
    namespace.inodes.forget(1, 1 << 63)
    assert namespace.inodes[1] is namespace.inodes.root


def test_forgetting_the_unknown_is_ignored(namespace: Namespace) -> None:
    namespace.inodes.forget(987654, 1)


def test_a_directory_outlives_its_forget_while_a_child_is_known(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "d").mkdir()
    (tree / "d" / "f").touch()
    directory = look(namespace, "d")
    file = look(namespace, "f", directory)
    namespace.inodes.forget(directory.ino, 1)
    assert namespace.inodes.attributes(file).st_ino == file.ino
    namespace.inodes.forget(file.ino, 1)
    assert set(namespace.inodes.nodes) == {1}


def test_a_file_that_is_open_outlives_its_forget(namespace: Namespace) -> None:
    node = create(namespace, "f")
    namespace.inodes.forget(node.ino, 1)
    assert node.ino in namespace.inodes.nodes
    namespace.opens.release(node)
    assert set(namespace.inodes.nodes) == {1}


def test_an_inode_number_that_comes_back_has_another_generation(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "a").touch()
    first = namespace.lookup(namespace.inodes.root, b"a")
    namespace.inodes.forget(first.nodeid, 1)
    second = namespace.lookup(namespace.inodes.root, b"a")
    assert second.nodeid == first.nodeid
    assert second.generation != first.generation


def test_lookup_below_a_file_is_enotdir(namespace: Namespace, tree: Path) -> None:
    (tree / "f").touch()
    with refused(errno.ENOTDIR):
        look(namespace, "x", look(namespace, "f"))


def test_an_unknown_nodeid_is_stale(namespace: Namespace) -> None:
    with refused(errno.ESTALE):
        namespace.inodes[987654]


# --- making -----------------------------------------------------------------------


def test_a_new_file_counts_one_lookup(namespace: Namespace) -> None:
    root = namespace.inodes.root
    made: list[Entry] = [
        namespace.mkdir(root, b"d", 0o750, *ME),
        namespace.mknod(root, b"p", stat.S_IFIFO | 0o640, 0, *ME),
        namespace.symlink(root, b"s", b"target", *ME),
    ]
    for entry in made:
        assert namespace.inodes[entry.nodeid].lookups == 1
        namespace.inodes.forget(entry.nodeid, 1)
    assert set(namespace.inodes.nodes) == {1}
    kinds = [stat.S_IFMT(entry.attributes.st_mode) for entry in made]
    assert kinds == [stat.S_IFDIR, stat.S_IFIFO, stat.S_IFLNK]


def test_a_symlink_is_read_and_never_followed(namespace: Namespace) -> None:
    entry = namespace.symlink(namespace.inodes.root, b"s", b"/nowhere", *ME)
    node = namespace.inodes[entry.nodeid]
    assert namespace.readlink(node) == b"/nowhere"
    assert stat.S_ISLNK(namespace.inodes.attributes(node).st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make things for others")
def test_a_new_file_belongs_to_its_creator(namespace: Namespace, tree: Path) -> None:
    root = namespace.inodes.root
    entries = [
        namespace.create(root, b"f", os.O_RDWR, 0o4711, 123, 456),
        namespace.mkdir(root, b"d", 0o700, 123, 456),
        namespace.symlink(root, b"s", b"x", 123, 456),
        namespace.mknod(root, b"p", stat.S_IFIFO | 0o600, 0, 123, 456),
        namespace.tmpfile(root, os.O_RDWR, 0o600, 123, 456),
    ]
    for entry in entries:
        assert (entry.attributes.st_uid, entry.attributes.st_gid) == (123, 456)
    # chown(2) clears the set-user-ID bit, but the request sets it.
    assert stat.S_IMODE((tree / "f").stat().st_mode) == 0o4711


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make things for others")
def test_a_set_group_id_directory_gives_its_group(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "d").mkdir()
    os.chown(tree / "d", 0, 789)
    os.chmod(tree / "d", 0o2777)
    directory = look(namespace, "d")
    made = namespace.create(directory, b"f", os.O_RDWR, 0o600, 123, 456)
    assert (made.attributes.st_uid, made.attributes.st_gid) == (123, 789)
    below = namespace.mkdir(directory, b"d", 0o755, 123, 456)
    assert below.attributes.st_gid == 789
    assert below.attributes.st_mode & stat.S_ISGID


def test_tmpfile_gets_a_name_by_link(namespace: Namespace, tree: Path) -> None:
    entry = namespace.tmpfile(namespace.inodes.root, os.O_RDWR, 0o600, *ME)
    node = namespace.inodes[entry.nodeid]
    assert entry.attributes.st_nlink == 0
    linked = namespace.link(node, namespace.inodes.root, b"named")
    assert linked.nodeid == entry.nodeid
    assert (tree / "named").stat().st_ino == node.ino
    namespace.opens.release(node)
    assert node.fd == -1
    assert namespace.inodes.attributes(node).st_nlink == 1


def test_tmpfile_with_o_excl_gets_no_name(namespace: Namespace) -> None:
    entry = namespace.tmpfile(namespace.inodes.root, os.O_RDWR | os.O_EXCL, 0o600, *ME)
    with refused(errno.ENOENT):
        namespace.link(namespace.inodes[entry.nodeid], namespace.inodes.root, b"named")


# --- opening ----------------------------------------------------------------------


def test_all_opens_share_one_fd(namespace: Namespace) -> None:
    node = create(namespace, "f")
    before = open_fds()
    files = {namespace.opens.open(node, flags) for flags in (os.O_RDONLY, os.O_RDWR)}
    assert files == {node.file}
    assert open_fds() == before


def test_the_last_release_closes(namespace: Namespace) -> None:
    before = open_fds()
    node = create(namespace, "f")
    namespace.opens.open(node, os.O_RDONLY)
    namespace.opens.release(node)
    assert node.file is not None
    namespace.opens.release(node)
    assert node.file is None
    assert open_fds() == before


# --- removing ---------------------------------------------------------------------


def test_a_file_unlinked_while_open_stays_until_release_and_forget(
    namespace: Namespace, tree: Path
) -> None:
    before = open_fds()
    node = create(namespace, "f")
    namespace.unlink(namespace.inodes.root, b"f")
    assert list(tree.iterdir()) == []
    assert namespace.inodes.attributes(node).st_nlink == 0
    namespace.opens.release(node)
    assert namespace.inodes.attributes(node).st_ino == node.ino
    namespace.inodes.forget(node.ino, 1)
    assert set(namespace.inodes.nodes) == {1}
    assert open_fds() == before


def test_a_file_whose_last_name_went_can_still_be_opened(
    namespace: Namespace, tree: Path
) -> None:
    """This happens if open(2) of one process races with an unlink of another."""
    (tree / "f").touch()
    node = look(namespace, "f")
    namespace.unlink(namespace.inodes.root, b"f")
    file = namespace.opens.open(node, os.O_RDWR)
    fallocated_now(file, 0, 0, 4096)
    assert os.fstat(file.fd).st_blocks == 8


def test_of_two_names_the_other_stays(namespace: Namespace, tree: Path) -> None:
    (tree / "a").touch()
    node = look(namespace, "a")
    namespace.link(node, namespace.inodes.root, b"b")
    before = open_fds()
    namespace.unlink(namespace.inodes.root, b"a")
    assert open_fds() == before
    assert namespace.inodes.attributes(node).st_nlink == 1
    assert look(namespace, "b") is node
    namespace.unlink(namespace.inodes.root, b"b")
    assert namespace.inodes.attributes(node).st_nlink == 0


def test_links_in_several_directories_keep_those_known(
    namespace: Namespace, tree: Path
) -> None:
    for name in ("d1", "d2"):
        (tree / name).mkdir()
    (tree / "f").touch()
    node = look(namespace, "f")
    for name in ("d1", "d2"):
        namespace.link(node, look(namespace, name), b"f")
        namespace.inodes.forget(look(namespace, name).ino, 2)
    assert len(namespace.inodes.nodes) == 4
    namespace.unlink(namespace.inodes.root, b"f")
    assert namespace.inodes.attributes(node).st_nlink == 2
    forget_all(namespace)
    assert set(namespace.inodes.nodes) == {1}


def test_a_file_whose_removal_failed_keeps_no_fd(
    namespace: Namespace, tree: Path
) -> None:
    """A refused rmdir must not leak an fd."""
    (tree / "d").mkdir()
    (tree / "d" / "f").touch()
    directory = look(namespace, "d")
    before = open_fds()
    with refused(errno.ENOTEMPTY):
        namespace.rmdir(namespace.inodes.root, b"d")
    with refused(errno.EISDIR):
        namespace.unlink(namespace.inodes.root, b"d")
    assert open_fds() == before
    assert look(namespace, "f", directory).lookups == 1


def test_a_removed_directory_can_be_used_while_it_is_open(
    namespace: Namespace, tree: Path
) -> None:
    (tree / "d").mkdir()
    node = look(namespace, "d")
    namespace.rmdir(namespace.inodes.root, b"d")
    assert namespace.inodes.attributes(node).st_nlink == 0
    with refused(errno.ENOENT):
        namespace.mkdir(node, b"x", 0o700, *ME)


# --- attributes -------------------------------------------------------------------


def test_attributes_are_set_with_and_without_an_fd(
    namespace: Namespace, tree: Path
) -> None:
    opened = create(namespace, "opened")
    (tree / "named").touch()
    for node in (opened, look(namespace, "named")):
        namespace.chmod(node, 0o100751)
        namespace.utime(node, (5, 1), (0, UTIME_OMIT))
        found = namespace.inodes.attributes(node)
        assert stat.S_IMODE(found.st_mode) == 0o751
        assert found.st_atime_ns == 5_000_000_001
        assert found.st_mtime_ns > 5_000_000_001


def test_a_symlinks_own_times_are_set(namespace: Namespace) -> None:
    entry = namespace.symlink(namespace.inodes.root, b"s", b"nowhere", *ME)
    node = namespace.inodes[entry.nodeid]
    namespace.utime(node, (0, UTIME_OMIT), (0, 7))
    assert namespace.inodes.attributes(node).st_mtime_ns == 7
