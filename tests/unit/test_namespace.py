"""The namespace over a real tmpfs directory: nodes, names and fds."""

from __future__ import annotations

import errno
import inspect
import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from inaccfs.fuse import inodes
from inaccfs.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, UTIME_OMIT
from tests.unit.fakes import fallocated_now, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.wire import Entry

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


# --- renaming ---------------------------------------------------------------------


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


# --- depth and width --------------------------------------------------------------


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


# --- changes in the backing that bypass the mount ---------------------------------


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
