"""Calls that make, move and remove names, and follow links."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from tests.hard import kernel
from tests.hard.calls import KINDS, PRESENT, Place, call, shape, tree
from tests.mount import raw
from tests.mount.support import outcome

if TYPE_CHECKING:
    from collections.abc import Callable

# --- making -------------------------------------------------------------------------


@call("create O_EXCL where there is {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    os.open(at.make(kind), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
    return shape(at.path())


@call("create where there is {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    flags = os.O_CREAT | os.O_RDWR | os.O_NONBLOCK
    os.close(os.open(at.make(kind), flags, 0o640))
    return [shape(at.path()), tree(at.own)]


@call("create with mode {mode:o}", mode=(0, 0o777, 0o1777, 0o2755, 0o4755, 0o7777))
def _(at: Place, mode: int) -> object:
    os.close(os.open(at.path(), os.O_CREAT | os.O_RDWR, mode))
    return shape(at.path())


@call("mkdir where there is {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    os.mkdir(at.make(kind))
    return [shape(at.path()), shape(at.own)]


@call("mkdir with mode {mode:o}", mode=(0, 0o777, 0o1777, 0o2755, 0o7777))
def _(at: Place, mode: int) -> object:
    os.mkdir(at.path(), mode)
    return shape(at.path())


@call(
    "mknod {kind:o}",
    kind=(0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK),
)
def _(at: Place, kind: int) -> object:
    os.mknod(at.path(), kind | 0o666, os.makedev(7, 300))
    return shape(at.path())


@call("mknod of kind {kind:o}", kind=(stat.S_IFDIR, stat.S_IFLNK, 0o150000))
def _(at: Place, kind: int) -> object:
    os.mknod(at.path(), kind | 0o666)
    return "made"


@call("mknod where there is {kind}", kind=PRESENT)
def _(at: Place, kind: str) -> object:
    os.mknod(at.make(kind), stat.S_IFREG | 0o600)
    return "made"


@call("symlink where there is {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    os.symlink("somewhere", at.make(kind))
    return [shape(at.path()), os.readlink(at.path())]


@call("symlink of {length} bytes", length=(0, 1, 100, 4094, 4095, 4096))
def _(at: Place, length: int) -> object:
    os.symlink("t" * length, at.path())
    return [shape(at.path()), len(os.readlink(at.path()))]


@call("link {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    os.link(at.make(kind), at.path("y"), follow_symlinks=False)
    return [
        shape(at.path()),
        os.path.samefile(at.path(), at.path("y")),
    ]


@call("link to where there is {kind}", kind=PRESENT)
def _(at: Place, kind: str) -> object:
    os.link(at.make("file"), at.make(kind, "y"))
    return "linked"


@call("link follows a symlink")
def _(at: Place) -> object:
    os.link(at.make("symlink"), at.path("y"), follow_symlinks=True)
    return shape(at.path("y"))


@call("link 500 times")
def _(at: Place) -> object:
    at.make("file")
    for number in range(500):
        os.link(at.path(), at.path(f"y{number}"))
    return shape(at.path())


@call("O_TMPFILE, then linkat by /proc")
def _(at: Place) -> object:
    fd = os.open(at.own, os.O_TMPFILE | os.O_RDWR, 0o640)
    before = os.fstat(fd).st_nlink
    raw.link_fd(fd, at.path())
    return [before, shape(at.path())]


@call("O_TMPFILE with O_EXCL cannot be linked")
def _(at: Place) -> object:
    fd = os.open(at.own, os.O_TMPFILE | os.O_EXCL | os.O_RDWR, 0o640)
    raw.link_fd(fd, at.path())
    return "linked"


@call("O_TMPFILE, then linkat with AT_EMPTY_PATH")
def _(at: Place) -> object:
    fd = os.open(at.own, os.O_TMPFILE | os.O_RDWR, 0o640)
    kernel.link_empty(fd, at.path())
    return shape(at.path())


@call("O_TMPFILE with {flags}", flags=("O_RDONLY", "O_WRONLY", "O_RDWR"))
def _(at: Place, flags: str) -> object:
    return stat.filemode(
        os.fstat(os.open(at.own, os.O_TMPFILE | getattr(os, flags), 0o7777)).st_mode
    )


@call("O_TMPFILE in {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    os.close(os.open(at.make(kind), os.O_TMPFILE | os.O_RDWR, 0o600))
    return tree(at.own)


@call("a name of {length} bytes: {how}", length=(1, 254, 255, 256), how=(
    "create", "mkdir", "symlink", "mknod", "rename", "link", "stat", "unlink",
))  # fmt: skip
def _(at: Place, length: int, how: str) -> object:
    name = at.path("n" * length)
    at.make("file")
    _BY_NAME[how](at, name)
    return len(os.listdir(at.own))


_BY_NAME: dict[str, Callable[[Place, str], object]] = {
    "create": lambda at, name: os.open(name, os.O_CREAT | os.O_RDWR),
    "mkdir": lambda at, name: os.mkdir(name),
    "symlink": lambda at, name: os.symlink("x", name),
    "mknod": lambda at, name: os.mknod(name),
    "rename": lambda at, name: os.rename(at.path(), name),
    "link": lambda at, name: os.link(at.path(), name),
    "stat": lambda at, name: os.stat(name),
    "unlink": lambda at, name: os.unlink(name),
}


@call("a path of {length} bytes", length=(4095, 4096))
def _(at: Place, length: int) -> object:
    return os.stat(at.own + "/." * ((length - len(at.own)) // 2 + 1))


@call("a name with {what}", what=("spaces", "newline", "bytes", "dots", "backslash"))
def _(at: Place, what: str) -> object:
    name = {
        "spaces": b" a b ",
        "newline": b"a\nb",
        "bytes": bytes(range(1, 47)) + bytes(range(48, 256)),
        "dots": b"...",
        "backslash": b"a\\b",
    }[what]
    path = os.fsencode(at.own) + b"/" + name
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    found = os.listdir(os.fsencode(at.own)) == [name]
    os.unlink(path)
    return [found, os.listdir(at.own)]


# --- removing -----------------------------------------------------------------------


@call("unlink {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    os.unlink(at.make(kind))
    return tree(at.own)


@call("rmdir {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    os.rmdir(at.make(kind))
    return [tree(at.own), shape(at.own)]


@call("{how} '{name}'", how=("unlink", "rmdir", "mkdir", "open O_CREAT", "rename"),
      name=(".", "..", "x/.", "x/..", "x/"))  # fmt: skip
def _(at: Place, how: str, name: str) -> object:
    at.make("directory")
    path = f"{at.own}/{name}"
    calls: dict[str, Callable[[], object]] = {
        "unlink": lambda: os.unlink(path),
        "rmdir": lambda: os.rmdir(path),
        "mkdir": lambda: os.mkdir(path),
        "open O_CREAT": lambda: os.open(path, os.O_CREAT | os.O_RDWR),
        "rename": lambda: os.rename(path, at.path("y")),
    }
    return [outcome(calls[how]), tree(at.own)]


@call("open file lives on after unlink")
def _(at: Place) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    os.unlink(at.path())
    raw.fallocate(fd, 0, 0, 8192)
    found = os.fstat(fd)
    return [found.st_nlink, found.st_size, found.st_blocks, tree(at.own)]


@call("open directory lives on after rmdir: {how}", how=("list", "create", "stat"))
def _(at: Place, how: str) -> object:
    fd = os.open(at.make("directory"), os.O_RDONLY)
    os.rmdir(at.path())
    if how == "list":
        return os.listdir(fd)
    if how == "create":
        return os.open("y", os.O_CREAT | os.O_RDWR, dir_fd=fd)
    return os.fstat(fd).st_nlink


# --- renaming -----------------------------------------------------------------------


@call("rename {old} over {new}", old=KINDS, new=KINDS)
def _(at: Place, old: str, new: str) -> object:
    at.make(old)
    at.make(new, "y")
    return [outcome(os.rename, at.path(), at.path("y")), tree(at.own), shape(at.own)]


@call("renameat2 {flag} {old} over {new}", flag=("NOREPLACE", "EXCHANGE", "WHITEOUT"),
      old=("file", "directory", "full", "symlink", "absent"),
      new=("file", "full", "absent"))  # fmt: skip
def _(at: Place, flag: str, old: str, new: str) -> object:
    at.make(old)
    at.make(new, "y")
    flags = getattr(raw, f"RENAME_{flag}")
    result = outcome(raw.renameat2, at.path(), at.path("y"), flags)
    return [result, tree(at.own)]


@call("renameat2 with flags {flags}", flags=(3, 5, 6, 8, 1 << 31))
def _(at: Place, flags: int) -> object:
    raw.renameat2(at.make("file"), at.path("y"), flags)
    return "moved"


@call("rename a directory into itself")
def _(at: Place) -> object:
    os.rename(at.make("directory"), at.path("x/y"))
    return "moved"


@call("rename over an ancestor")
def _(at: Place) -> object:
    os.makedirs(at.path("x/y/z"))
    os.rename(at.path("x/y/z"), at.path())
    return "moved"


@call("rename two names of one file")
def _(at: Place) -> object:
    os.link(at.make("file"), at.path("y"))
    os.rename(at.path(), at.path("y"))
    return [tree(at.own), shape(at.path())]


@call("rename a directory to another one: links")
def _(at: Place) -> object:
    at.make("full")
    at.make("directory", "y")
    os.rename(at.path(), at.path("y/x"))
    return [shape(at.own), shape(at.path("y")), tree(at.path("y/x"))]


@call("rename an open file, then use it")
def _(at: Place) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    os.rename(at.path(), at.path("y"))
    raw.fallocate(fd, 0, 0, 4096)
    return shape(at.path("y"))


# --- following ----------------------------------------------------------------------


@call("a chain of {length} symlinks", length=(1, 39, 40, 41))
def _(at: Place, length: int) -> object:
    at.make("file", "s0")
    for number in range(length):
        os.symlink(f"s{number}", at.path(f"s{number + 1}"))
    return stat.filemode(os.stat(at.path(f"s{length}")).st_mode)


@call("a symlink to itself: {how}", how=("stat", "open", "unlink", "chmod"))
def _(at: Place, how: str) -> object:
    os.symlink("x", at.path())
    calls: dict[str, Callable[[], object]] = {
        "stat": lambda: os.stat(at.path()),
        "open": lambda: os.open(at.path(), os.O_RDONLY),
        "unlink": lambda: os.unlink(at.path()),
        "chmod": lambda: os.chmod(at.path(), 0o600),
    }
    return calls[how]()


@call("O_NOFOLLOW {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    os.close(os.open(at.make(kind), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    return "opened"


@call("{how} below a file", how=("stat", "mkdir", "create", "unlink", "symlink"))
def _(at: Place, how: str) -> object:
    below = f"{at.make('file')}/y"
    calls: dict[str, Callable[[], object]] = {
        "stat": lambda: os.stat(below),
        "mkdir": lambda: os.mkdir(below),
        "create": lambda: os.open(below, os.O_CREAT | os.O_RDWR),
        "unlink": lambda: os.unlink(below),
        "symlink": lambda: os.symlink("x", below),
    }
    return calls[how]()
