"""Calls in directories: those of other users, and reading any."""

from __future__ import annotations

import itertools
import os
import stat
from typing import TYPE_CHECKING

from tests.hard.calls import OTHER_GID, PRESENT, Place, call, shape
from tests.mount import raw

if TYPE_CHECKING:
    from collections.abc import Callable

# --- others' directories ------------------------------------------------------------


@call("in {where}: {how}", where=("closed", "open", "sticky", "setgid", "."), how=(
    "list", "create", "mkdir", "unlink", "rename", "symlink", "link", "stat", "chmod",
))  # fmt: skip
def _(at: Place, where: str, how: str) -> object:
    place = f"{at.theirs}/{where}"
    at.make("file")
    calls: dict[str, Callable[[], object]] = {
        "list": lambda: sorted(os.listdir(place)),
        "create": lambda: _made(os.open, f"{place}/new", os.O_CREAT | os.O_RDWR),
        "mkdir": lambda: _made(os.mkdir, f"{place}/new"),
        "unlink": lambda: os.unlink(f"{place}/x"),
        "rename": lambda: os.rename(f"{place}/x", f"{place}/y"),
        "symlink": lambda: os.symlink("x", f"{place}/new"),
        "link": lambda: os.link(at.path(), f"{place}/new"),
        "stat": lambda: stat.filemode(os.stat(f"{place}/x").st_mode),
        "chmod": lambda: os.chmod(place, 0o777),
    }
    return calls[how]()


def _made(make: object, path: str, *arguments: object) -> object:
    assert callable(make)
    make(path, *arguments)
    return shape(path)


@call(
    "link somebody's {name} (protected_hardlinks)", name=("secret", "public", "common")
)
def _(at: Place, name: str) -> object:
    os.link(f"{at.theirs}/{name}", at.path())
    return "linked"


@call("create somebody's file in a sticky directory (protected_regular)")
def _(at: Place) -> object:
    os.close(os.open(f"{at.theirs}/sticky/x", os.O_CREAT | os.O_WRONLY))
    return "opened"


@call("a set-group-ID directory gives its group to {kind}", kind=("file", "directory"))
def _(at: Place, kind: str) -> object:
    path = f"{at.theirs}/setgid/new"
    Place(f"{at.theirs}/setgid", "").make(kind, "new")
    found = os.lstat(path)
    return [stat.filemode(found.st_mode), found.st_gid == OTHER_GID]


# --- reading directories ------------------------------------------------------------


def _filled(at: Place, count: int) -> str:
    os.mkdir(at.path("d"))
    for number in range(count):
        os.mknod(at.path(f"d/{number}"), stat.S_IFREG | 0o600)
    return at.path("d")


@call("list {count} names", count=(0, 1, 100, 1000))
def _(at: Place, count: int) -> object:
    return sorted(os.listdir(_filled(at, count))) == sorted(map(str, range(count)))


@call("list with a buffer of {size} bytes", size=(0, 16, 24, 32, 512))
def _(at: Place, size: int) -> object:
    fd = os.open(_filled(at, 40), os.O_RDONLY)
    found: list[bytes] = []
    while entries := raw.getdents(fd, size):
        found += [name for name, _ in entries]
    return sorted(map(os.fsdecode, found))


@call("seekdir to each position")
def _(at: Place) -> object:
    fd = os.open(_filled(at, 60), os.O_RDONLY)
    entries = raw.getdents(fd)
    for (_, offset), (name, _) in itertools.pairwise(entries):
        os.lseek(fd, offset, os.SEEK_SET)
        if raw.getdents(fd, 512)[0][0] != name:
            return f"another than {name!r}"
    return len(entries)


@call("rewinddir sees what is new")
def _(at: Place) -> object:
    path = _filled(at, 3)
    fd = os.open(path, os.O_RDONLY)
    before = len(raw.getdents(fd))
    os.mknod(f"{path}/new")
    os.lseek(fd, 0, os.SEEK_SET)
    return [before, len(raw.getdents(fd))]


@call("remove all while listing")
def _(at: Place) -> object:
    path = _filled(at, 300)
    fd = os.open(path, os.O_RDONLY)
    while entries := [name for name, _ in raw.getdents(fd, 700)]:
        for name in entries:
            if name not in (b".", b".."):
                os.unlink(os.fsencode(path) + b"/" + name)
    return os.listdir(path)


@call("read(2) a directory")
def _(at: Place) -> object:
    return os.read(os.open(at.own, os.O_RDONLY), 10)


@call("list the types of kinds")
def _(at: Place) -> object:
    for kind in PRESENT:
        at.make(kind, kind)
    return sorted(
        [entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()]
        for entry in os.scandir(at.own)
    )
