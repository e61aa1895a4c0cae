"""Names: made, moved, linked and removed as on the tmpfs below."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.mount import raw, support
from tests.mount.support import (
    MIB,
    PAGE,
    allocated,
    new_file,
    opened,
    outcome,
    run,
    used,
)

if TYPE_CHECKING:
    from inaccfs import Mount

pytestmark = pytest.mark.fuse


# --- making -------------------------------------------------------------------


def test_o_excl_makes_a_file_once(mount: Mount) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    with opened(mount.path / "file", flags, 0o640) as fd:
        os.ftruncate(fd, PAGE)
    assert outcome(os.open, mount.path / "file", flags) == "EEXIST"
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR, 0o777) as fd:
        assert os.fstat(fd).st_size == PAGE
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640


def test_a_file_may_be_made_without_permission_to_write_it(mount: Mount) -> None:
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR, 0) as fd:
        os.ftruncate(fd, PAGE)
        raw.fallocate(fd, 0, 0, PAGE)
    with opened(mount.path / "ro", os.O_CREAT | os.O_RDONLY, 0o400) as fd:
        assert os.fstat(fd).st_size == 0


def test_the_umask_of_the_caller_counts(mount: Mount) -> None:
    script = "umask 027; touch file; mkdir directory; mkfifo fifo; chmod 777 ."
    run("sh", "-c", script, cwd=mount.path)
    found = {name: stat.S_IMODE(os.stat(mount.path / name).st_mode)
             for name in ("file", "directory", "fifo")}  # fmt: skip
    assert found == {"file": 0o640, "directory": 0o750, "fifo": 0o640}


def test_a_file_without_a_name_gets_one_by_linkat(mount: Mount) -> None:
    """O_TMPFILE of open(2)."""
    with opened(mount.path, os.O_TMPFILE | os.O_RDWR) as fd:
        raw.fallocate(fd, 0, 0, 2 * PAGE)
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(mount.path) == []

        raw.link_fd(fd, mount.path / "file")

        assert os.fstat(fd).st_nlink == 1
        assert os.stat(mount.path / "file").st_ino == os.fstat(fd).st_ino
        assert outcome(raw.link_fd, fd, mount.path / "file") == "EEXIST"
    assert allocated(mount.path / "file") == 2 * PAGE
    assert outcome(os.truncate, mount.path / "file", 0) == "EPERM"


def test_a_file_without_a_name_goes_with_the_last_close(mount: Mount) -> None:
    with opened(mount.path, os.O_TMPFILE | os.O_RDWR) as fd:
        raw.fallocate(fd, 0, 0, 16 * PAGE)
        assert used(mount.path) == 16 * PAGE
    support.wait_until_unused(mount.path)


def test_o_excl_keeps_a_file_without_a_name_from_ever_getting_one(mount: Mount) -> None:
    with opened(mount.path, os.O_TMPFILE | os.O_EXCL | os.O_RDWR) as fd:
        assert outcome(raw.link_fd, fd, mount.path / "file") == "ENOENT"
        raw.fallocate(fd, 0, 0, PAGE)
    assert os.listdir(mount.path) == []


def test_mknod_makes_files_fifos_and_sockets(mount: Mount) -> None:
    os.mknod(mount.path / "file", stat.S_IFREG | 0o600)
    os.mkfifo(mount.path / "fifo")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as peer:
        server.bind(str(mount.path / "socket"))
        server.listen()
        peer.connect(str(mount.path / "socket"))

    output = run("stat", "-c", "%n %F", "file", "fifo", "socket", cwd=mount.path).stdout
    assert output == "file regular empty file\nfifo fifo\nsocket socket\n"
    # The file has the same rules as any other.
    os.truncate(mount.path / "file", PAGE)
    with opened(mount.path / "file") as fd:
        assert outcome(os.read, fd, 1) == "EINVAL"
    # A fifo is not memory: it carries bytes.
    output = run("sh", "-c", "echo through > fifo & cat fifo", cwd=mount.path).stdout
    assert output == "through\n"


def test_symbolic_links_lead_where_they_say(mount: Mount) -> None:
    new_file(mount.path / "file", PAGE)
    for name, target in {
        "relative": "file",
        "absolute": str(mount.path / "file"),
        "dangling": "nowhere",
        "loop": "loop",
        "long": "x" * 4095,
    }.items():
        os.symlink(target, mount.path / name)
        assert os.readlink(mount.path / name) == target
        assert os.lstat(mount.path / name).st_size == len(target)

    assert os.stat(mount.path / "relative").st_size == PAGE
    assert os.stat(mount.path / "absolute").st_size == PAGE
    assert outcome(os.stat, mount.path / "dangling") == "ENOENT"
    assert outcome(os.stat, mount.path / "loop") == "ELOOP"


def test_hard_links_are_one_file(mount: Mount) -> None:
    file, link = new_file(mount.path / "file", PAGE), mount.path / "directory" / "link"
    link.parent.mkdir()
    run("ln", file, link)
    run("fallocate", "-l", PAGE, file)

    assert os.path.samefile(file, link)
    assert os.stat(link).st_nlink == 2
    assert allocated(link) == PAGE
    os.unlink(file)
    assert os.stat(link).st_nlink == 1
    assert allocated(link) == PAGE
    assert outcome(os.link, link.parent, mount.path / "directory2") == "EPERM"
    os.unlink(link)
    support.wait_until_unused(mount.path)


def test_a_symbolic_link_can_have_hard_links(mount: Mount) -> None:
    os.symlink("target", mount.path / "link")
    os.link(mount.path / "link", mount.path / "hard", follow_symlinks=False)
    os.unlink(mount.path / "link")
    assert os.readlink(mount.path / "hard") == "target"


def test_directories_count_their_directories(mount: Mount) -> None:
    for name in ("a", "a/b", "a/c"):
        (mount.path / name).mkdir()
    assert os.stat(mount.path / "a").st_nlink == 4
    os.rmdir(mount.path / "a/b")
    assert os.stat(mount.path / "a").st_nlink == 3
    assert outcome(os.rmdir, mount.path / "a") == "ENOTEMPTY"
    assert outcome(os.unlink, mount.path / "a") == "EISDIR"


# --- removing -----------------------------------------------------------------


def test_a_file_that_is_open_outlives_its_name(mount: Mount) -> None:
    file = new_file(mount.path / "file", 4 * PAGE)
    with opened(file) as fd, opened(file) as second:
        os.unlink(file)

        assert os.fstat(fd).st_nlink == 0
        raw.fallocate(fd, 0, 0, 4 * PAGE)
        raw.punch(fd, 0, PAGE)
        os.fchmod(fd, 0o400)
        assert allocated(second) == 3 * PAGE
        assert stat.S_IMODE(os.fstat(second).st_mode) == 0o400
        assert outcome(os.stat, file) == "ENOENT"
        # A new file of that name is another file.
        new_file(file)
        assert allocated(file) == 0
        assert os.stat(file).st_ino != os.fstat(fd).st_ino
        # Through /proc, too; see proc(5).
        with opened(f"/proc/self/fd/{fd}", os.O_RDONLY) as third:
            assert allocated(third) == 3 * PAGE
    support.wait_until_unused(mount.path)


@pytest.mark.parametrize("size", [16 * PAGE, 64 * MIB], ids=["small", "large"])
def test_the_memory_goes_with_the_last_close(mount: Mount, size: int) -> None:
    """A large file is freed in a thread, so `used` may be asked before that is over."""
    file = new_file(mount.path / "file")
    with ExitStack() as stack:
        fd = stack.enter_context(opened(file))
        raw.fallocate(fd, 0, 0, size)
        stack.enter_context(opened(file, os.O_RDONLY))
        os.unlink(file)
        assert used(mount.path) == size
    support.wait_until_unused(mount.path)


def test_a_file_that_a_rename_replaced_goes_with_the_last_close(mount: Mount) -> None:
    old, new = new_file(mount.path / "old"), new_file(mount.path / "new")
    with opened(old) as fd:
        raw.fallocate(fd, 0, 0, 4 * PAGE)
        os.rename(new, old)
        assert os.fstat(fd).st_nlink == 0
        assert allocated(fd) == 4 * PAGE
        assert allocated(old) == 0
    support.wait_until_unused(mount.path)


def test_a_directory_that_is_open_outlives_its_name(mount: Mount) -> None:
    directory = mount.path / "directory"
    directory.mkdir()
    with opened(directory, os.O_RDONLY) as fd:
        os.rmdir(directory)
        assert os.listdir(fd) == []
        assert outcome(os.open, "file", os.O_CREAT | os.O_RDWR, dir_fd=fd) == "ENOENT"
        assert stat.S_ISDIR(os.fstat(fd).st_mode)


def test_a_file_can_be_made_anew_many_times(mount: Mount) -> None:
    """Inode numbers are reused, but not the kernel's cache of the old inode."""
    file = mount.path / "file"
    for size in range(1, 301):
        with opened(file, os.O_CREAT | os.O_EXCL | os.O_RDWR) as fd:
            os.ftruncate(fd, size * PAGE)
        assert os.stat(file).st_size == size * PAGE
        os.unlink(file)
    assert os.listdir(mount.path) == []


# --- renaming -----------------------------------------------------------------


def test_rename_moves_and_replaces(mount: Mount) -> None:
    first = new_file(mount.path / "first", PAGE)
    second = new_file(mount.path / "second", 2 * PAGE)
    (mount.path / "directory").mkdir()

    run("mv", first, mount.path / "directory/moved")
    assert not first.exists()
    assert os.stat(mount.path / "directory/moved").st_size == PAGE
    os.rename(mount.path / "directory/moved", second)
    assert os.stat(second).st_size == PAGE
    assert os.listdir(mount.path / "directory") == []
    assert outcome(os.rename, second, mount.path / "directory") == "EISDIR"
    assert outcome(os.rename, mount.path / "directory", second) == "ENOTDIR"
    assert outcome(os.rename, mount.path / "nothing", second) == "ENOENT"


def test_a_file_that_is_open_can_be_moved(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    (mount.path / "directory").mkdir()
    with opened(file) as fd:
        os.rename(file, mount.path / "directory/file")
        raw.fallocate(fd, 0, 0, PAGE)
        assert allocated(mount.path / "directory/file") == PAGE
        os.rename(mount.path / "directory", mount.path / "other")
        raw.fallocate(fd, 0, PAGE, PAGE)
        assert allocated(mount.path / "other/file") == 2 * PAGE


def test_rename_noreplace_refuses_an_existing_name(mount: Mount) -> None:
    first = new_file(mount.path / "first", PAGE)
    second = new_file(mount.path / "second", 2 * PAGE)

    assert outcome(raw.renameat2, first, second, raw.RENAME_NOREPLACE) == "EEXIST"
    assert os.stat(second).st_size == 2 * PAGE
    raw.renameat2(first, mount.path / "third", raw.RENAME_NOREPLACE)
    assert os.stat(mount.path / "third").st_size == PAGE


def test_rename_exchange_swaps_files_and_trees(mount: Mount) -> None:
    file = new_file(mount.path / "file", PAGE)
    (mount.path / "a" / "b").mkdir(parents=True)
    inner = new_file(mount.path / "a" / "b" / "inner", 2 * PAGE)

    raw.renameat2(file, mount.path / "a", raw.RENAME_EXCHANGE)

    assert os.stat(mount.path / "a").st_size == PAGE
    assert os.stat(mount.path / "file/b/inner").st_size == 2 * PAGE
    assert outcome(os.stat, inner) == "ENOTDIR"
    raw.renameat2(mount.path / "a", mount.path / "file/b", raw.RENAME_EXCHANGE)
    assert os.stat(mount.path / "a/inner").st_size == 2 * PAGE
    assert os.stat(mount.path / "file/b").st_size == PAGE
    result = outcome(raw.renameat2, file, mount.path / "nothing", raw.RENAME_EXCHANGE)
    assert result == "ENOENT"
    # The link counts include both directories.
    assert os.stat(mount.path).st_nlink == 4


def test_a_directory_cannot_be_moved_into_itself(mount: Mount) -> None:
    (mount.path / "a" / "b").mkdir(parents=True)
    assert outcome(os.rename, mount.path / "a", mount.path / "a/b/c") == "EINVAL"


def test_a_name_can_be_moved_onto_a_link_of_the_same_file(mount: Mount) -> None:
    """rename(2) does nothing then, and leaves both names."""
    file = new_file(mount.path / "file", PAGE)
    os.link(file, mount.path / "link")
    os.rename(file, mount.path / "link")
    assert sorted(os.listdir(mount.path)) == ["file", "link"]
    assert os.stat(file).st_nlink == 2


# --- unusual names and trees --------------------------------------------------


def test_names_are_bytes_up_to_255(mount: Mount) -> None:
    root = os.fsencode(mount.path)
    names = [
        b"n" * 255,
        b"\xff\xfe not utf-8 \x80",
        "ünïcödé \N{SNOWMAN}".encode(),
        b"new\nline\ttab",
        b" ",
        b"-rf",
        b"...",
        b"*?[]\\\"'",
    ]
    for name in names:
        path = os.path.join(root, name)
        with opened(os.fsdecode(path), os.O_CREAT | os.O_EXCL | os.O_RDWR) as fd:
            os.ftruncate(fd, PAGE)
        os.rename(path, path + b".") if len(name) < 255 else None
    wanted = sorted(name if len(name) == 255 else name + b"." for name in names)
    assert sorted(os.listdir(root)) == wanted
    for name in wanted:
        assert os.stat(os.path.join(root, name)).st_size == PAGE
        os.unlink(os.path.join(root, name))
    assert outcome(os.mknod, os.path.join(root, b"n" * 256)) == "ENAMETOOLONG"
    assert os.listdir(root) == []


def test_a_tree_may_be_deep(mount: Mount) -> None:
    """It is deeper than the daemon's cache of directories, and than Python recurses."""
    depth = 400
    with ExitStack() as stack:
        at = stack.enter_context(opened(mount.path, os.O_RDONLY))
        for _ in range(depth):
            os.mkdir("d", dir_fd=at)
            at = stack.enter_context(opened_at(at, "d"))
        with opened_at(at, "file", os.O_CREAT | os.O_RDWR) as fd:
            raw.fallocate(fd, 0, 0, PAGE)

    deep = "/".join(["d"] * depth) + "/file"
    assert allocated(mount.path / deep) == PAGE
    # The kernel may have forgotten the inodes between.
    run("sh", "-c", "echo 2 > /proc/sys/vm/drop_caches", status=None)
    assert allocated(mount.path / deep) == PAGE
    os.rename(mount.path / "d" / "d", mount.path / "e")
    assert allocated(mount.path / deep.replace("d/d", "e", 1)) == PAGE
    run("rm", "-rf", "d", "e", cwd=mount.path)
    support.wait_until_unused(mount.path)


def opened_at(directory: int, name: str, flags: int = os.O_RDONLY) -> OpenedAt:
    """Like `opened`, below a directory's fd."""
    return OpenedAt(os.open(name, flags, dir_fd=directory))


class OpenedAt:
    """An fd for the length of a with block."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
