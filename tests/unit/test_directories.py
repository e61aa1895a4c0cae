"""Reading directories: positions in them, and pyfuse3's READDIR."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import pyfuse3
import pytest

from inaccfs import syscalls
from inaccfs.fuse.directories import OpenDirectory
from inaccfs.syscalls import DirectoryEntry

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.operations import Operations


# --- positions in a directory -----------------------------------------------------


class CountingDirectory:
    """A directory whose positions count names from the start, as on hugetlbfs.

    Replaces getdents(2) and lseek(2). After names were removed a seek skips that many.
    """

    def __init__(self, names: int, at_once: int) -> None:
        self.names = [b"%d" % number for number in range(names)]
        self._at_once = at_once
        self._read: list[bytes] = []
        self.seeks: list[int] = []

    def getdents(self, fd: int) -> list[DirectoryEntry]:
        # The kernel's cursor is a place in its list; it stays when names are removed.
        left = [name for name in self.names if name not in self._read]
        batch = left[: self._at_once]
        self._read += batch
        before = len(self._read) - len(batch)
        return [
            DirectoryEntry(name, 1000 + int(name), before + at + 1)
            for at, name in enumerate(batch)
        ]

    def lseek(self, fd: int, position: int, whence: int) -> int:
        assert whence == os.SEEK_SET
        self.seeks.append(position)
        self._read = self.names[:position]
        return position


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingDirectory:
    made = CountingDirectory(names=20, at_once=6)
    monkeypatch.setattr(syscalls, "getdents", made.getdents)
    monkeypatch.setattr(os, "lseek", made.lseek)
    return made


def _take(directory: OpenDirectory, position: int, count: int) -> list[DirectoryEntry]:
    """The entries that one READDIR takes, with room for *count*."""
    directory.seek(position)
    taken: list[DirectoryEntry] = []
    while len(taken) < count and (found := directory.peek()) is not None:
        taken.append(found)
        directory.take()
    return taken


@pytest.mark.parametrize("count", [1, 4, 6, 7, 100])
def test_names_that_go_while_a_directory_is_read_hide_no_others(
    counting: CountingDirectory, namespace: Namespace, count: int
) -> None:
    """rm -r does this: it reads some, removes them, and reads on."""
    directory = OpenDirectory(namespace.inodes.root, 99)
    every = list(counting.names)
    position, seen = 0, []
    while taken := _take(directory, position, count):
        position = taken[-1].offset
        for entry in taken:
            seen.append(entry.name)
            counting.names.remove(entry.name)
    assert seen == every
    assert counting.seeks == []


def test_a_reader_that_goes_back_reads_anew(
    counting: CountingDirectory, namespace: Namespace
) -> None:
    directory = OpenDirectory(namespace.inodes.root, 99)
    first = _take(directory, 0, 4)
    assert [entry.name for entry in first] == [b"0", b"1", b"2", b"3"]
    counting.names.remove(b"0")
    counting.names.append(b"20")
    again = _take(directory, 0, 100)
    assert [entry.name for entry in again] == counting.names
    assert counting.seeks == [0]
    # It seeks to an earlier position, and goes on from there without a seek.
    position = again[2].offset
    assert [entry.name for entry in _take(directory, position, 2)] == [b"4", b"5"]
    assert _take(directory, again[4].offset, 1)[0].name == b"6"
    assert counting.seeks == [0, position]


def test_the_end_of_a_directory_may_be_asked_for_again(
    counting: CountingDirectory, namespace: Namespace
) -> None:
    directory = OpenDirectory(namespace.inodes.root, 99)
    position = _take(directory, 0, 100)[-1].offset
    assert _take(directory, position, 1) == []
    assert directory.peek() is None
    # A name that was made meanwhile.
    counting.names.append(b"20")
    assert [entry.name for entry in _take(directory, position, 5)] == [b"20"]
    assert counting.seeks == []


def test_an_entry_that_was_looked_at_and_not_taken_is_next(
    counting: CountingDirectory, namespace: Namespace
) -> None:
    """The reply had no room for it."""
    directory = OpenDirectory(namespace.inodes.root, 99)
    (taken,) = _take(directory, 0, 1)
    refused = directory.peek()
    directory.seek(taken.offset)
    assert directory.peek() == refused
    assert counting.seeks == []


# --- reading directories ----------------------------------------------------------


class Replies:
    """Replaces pyfuse3.readdir_reply(): one reply has room for *room* entries."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[tuple[bytes, int, int]] = []

    def __call__(
        self,
        token: object,
        name: bytes,
        attributes: pyfuse3.EntryAttributes,
        position: int,
    ) -> bool:
        if len(self.taken) == self.room:
            return False
        self.taken.append((name, attributes.st_ino, position))
        return True


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> Replies:
    made = Replies(7)
    monkeypatch.setattr(pyfuse3, "readdir_reply", made)
    return made


async def _readdir(
    operations: Operations, fh: pyfuse3.FileHandleT, position: int, replies: Replies
) -> list[tuple[bytes, int, int]]:
    replies.taken = []
    await operations.readdir(fh, position, cast("Any", None))
    return replies.taken


def _open_root(operations: Operations) -> pyfuse3.FileHandleT:
    namespace = operations._namespace
    return pyfuse3.FileHandleT(namespace.directories.open(namespace.inodes.root, 0))


async def test_each_name_is_listed_once_and_counts_one_lookup(
    operations: Operations, namespace: Namespace, tree: Path, replies: Replies
) -> None:
    """A name that a reply had no room for counts only when it is sent."""
    for at in range(20):
        (tree / f"f{at}").touch()
    inodes = {os.fsencode(entry.name): entry.inode() for entry in os.scandir(tree)}
    fh = _open_root(operations)
    position, listed = 0, []
    while taken := await _readdir(operations, fh, position, replies):
        listed += [(name, ino) for name, ino, _ in taken]
        position = taken[-1][2]
        assert len(namespace.inodes.nodes) == 1 + sum(
            not name.startswith(b".") for name, _ in listed
        )
    assert sorted(listed) == sorted([*inodes.items(), (b".", 1), (b"..", 1)])
    for ino in inodes.values():
        assert namespace.inodes[ino].lookups == 1
        namespace.inodes.forget(ino, 1)
    assert set(namespace.inodes.nodes) == {1}
    await operations.releasedir(fh)


async def test_a_directory_can_be_emptied_while_it_is_read(
    operations: Operations, namespace: Namespace, tree: Path, replies: Replies
) -> None:
    for at in range(50):
        (tree / f"f{at}").touch()
    fh = _open_root(operations)
    position = 0
    while taken := await _readdir(operations, fh, position, replies):
        position = taken[-1][2]
        for name, ino, _ in taken:
            if name not in (b".", b".."):
                namespace.unlink(namespace.inodes.root, name)
                namespace.inodes.forget(ino, 1)
    assert os.listdir(tree) == []
    assert set(namespace.inodes.nodes) == {1}
    # The same handle reads again from the start.
    names = [name for name, _, _ in await _readdir(operations, fh, 0, replies)]
    assert sorted(names) == [b".", b".."]
    await operations.releasedir(fh)


async def test_a_name_removed_since_is_skipped(
    operations: Operations, tree: Path, replies: Replies
) -> None:
    for at in range(20):
        (tree / f"f{at}").touch()
    fh = _open_root(operations)
    position, listed = 0, []
    while taken := await _readdir(operations, fh, position, replies):
        listed += [os.fsdecode(name) for name, _, _ in taken]
        position = taken[-1][2]
        for name in set(os.listdir(tree)) - set(listed):
            os.unlink(tree / name)
    assert set(listed) == {".", "..", *os.listdir(tree)}
    assert len(listed) == 7
    await operations.releasedir(fh)


async def test_handles_that_were_not_released_are_closed(
    operations: Operations,
) -> None:
    fh = _open_root(operations)
    operations._namespace.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fh)
