"""Calls on names and attributes, made one by one on any file system.

A call is a function of a `Place`; its outcome is the return value or an errno. Two file
systems that behave alike must give equal outcomes, so outcomes have no inode numbers,
times or paths. `outcomes` makes all calls in a separate process, as a given user; the
tables of calls are the modules calls_*.py.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tests.mount.support import ENVIRONMENT, PATIENCE, TOP, outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

OTHER_UID: Final = 12345
OTHER_GID: Final = 54321

KINDS: Final = (
    "file",
    "directory",
    "full",
    "symlink",
    "dangling",
    "fifo",
    "socket",
    "absent",
)
PRESENT: Final = tuple(kind for kind in KINDS if kind != "absent")


@dataclass(frozen=True)
class Place:
    """Where a call is made: directories of the caller and of another user."""

    own: str
    # See `_furnish`.
    theirs: str

    def path(self, name: str = "x") -> str:
        """A path in the caller's directory."""
        return f"{self.own}/{name}"

    def make(self, kind: str, name: str = "x") -> str:
        """Make something of one of `KINDS`; return its path."""
        path = self.path(name)
        _MAKERS[kind](path)
        return path


CALLS: Final[dict[str, Callable[[Place], object]]] = {}
"""The calls by name; a failing test shows the name."""


def call(name: str, /, **choices: Iterable[object]) -> Callable[[Any], Any]:
    """Enter a function into `CALLS`, once for each combination of *choices*."""

    def enter(function: Any) -> Any:
        for chosen in itertools.product(*choices.values()):
            arguments = dict(zip(choices, chosen, strict=True))
            full = name.format(**arguments)
            assert full not in CALLS, full
            CALLS[full] = partial(function, **arguments)
        return function

    return enter


def _file(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _full(path: str) -> None:
    os.mkdir(path)
    _file(f"{path}/inside")


def _symlink(path: str) -> None:
    _file(f"{path}.target")
    os.symlink(f"{os.path.basename(path)}.target", path)


def _socket(path: str) -> None:
    # bind(2) by a short name: sun_path has 108 bytes.
    with socket.socket(socket.AF_UNIX) as made:
        before = os.open(".", os.O_PATH)
        os.chdir(os.path.dirname(path))
        made.bind(os.path.basename(path))
        os.fchdir(before)
        os.close(before)


_MAKERS: Final[dict[str, Callable[[str], object]]] = {
    "file": _file,
    "directory": os.mkdir,
    "full": _full,
    "symlink": _symlink,
    "dangling": lambda path: os.symlink("nowhere", path),
    "fifo": os.mkfifo,
    "socket": _socket,
    "absent": lambda _: None,
}


# --- what outcomes are made of ------------------------------------------------------


def shape(path: str) -> list[object]:
    """The results of lstat(2) that two file systems must agree on."""
    found = os.lstat(path)
    return [
        stat.filemode(found.st_mode),
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_size,
        found.st_blocks,
        found.st_rdev,
    ]


def tree(path: str) -> list[str]:
    """What is in a directory, with the kind of each."""
    return sorted(
        f"{entry.name} {stat.filemode(entry.stat(follow_symlinks=False).st_mode)[0]}"
        for entry in os.scandir(path)
    )


def moved(path: str, change: Callable[[], object]) -> str:
    """The times of a path that a call has changed: "amc" are all three."""

    def times() -> tuple[int, int, int]:
        found = os.lstat(path)
        return found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns

    # Far enough from now for the kernel's clock to tick in between.
    os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
    before = times()
    signal.sigtimedwait([], 0.012)
    result = outcome(change)
    pairs = zip("amc", before, times(), strict=True)
    return f"{result} {''.join(letter for letter, old, new in pairs if old != new)}"


# --- running them -------------------------------------------------------------------


def _furnish(theirs: Path) -> None:
    """Fill a directory of another user with entries of different modes."""
    theirs.mkdir()
    for name, mode in (("secret", 0o600), ("public", 0o644), ("common", 0o666)):
        _file(str(theirs / name))
        (theirs / name).chmod(mode)
    for name, mode in (("closed", 0o700), ("open", 0o755), ("sticky", 0o1777)):
        (theirs / name).mkdir()
        _file(str(theirs / name / "x"))
        (theirs / name).chmod(mode)
    (theirs / "setgid").mkdir()
    theirs.chmod(0o755)
    for path in (theirs, *theirs.rglob("*")):
        os.chown(path, OTHER_UID, OTHER_GID)
    (theirs / "setgid").chmod(0o2777)


def names() -> list[str]:
    """The outcomes of all calls."""
    _load()
    return list(CALLS)


def outcomes(root: Path, uid: int, chosen: list[str]) -> dict[str, object]:
    """The outcomes of calls on the file system at *root*, made as user *uid*.

    *root* is a directory that *uid* may enter; the caller is root.
    """
    for number in range(len(chosen)):
        own = root / str(number) / "own"
        own.mkdir(parents=True)
        os.chown(own, uid, uid)
        _furnish(root / str(number) / "theirs")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.hard.calls", str(root), str(uid)],
        env=ENVIRONMENT,
        cwd=TOP,
        input=json.dumps(chosen).encode(),
        stdout=subprocess.PIPE,
        timeout=5 * PATIENCE,
        check=True,
    )
    found: dict[str, object] = json.loads(ran.stdout)
    return found


def _load() -> None:
    # An import of these modules enters their calls.
    for table in ("attributes", "files", "names", "directories"):
        importlib.import_module(f"tests.hard.calls_{table}")


def _main(root: str, uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.umask(0o022)
    found: dict[str, object] = {}
    for number, name in enumerate(json.load(sys.stdin)):
        place = Place(f"{root}/{number}/own", f"{root}/{number}/theirs")
        try:
            found[name] = CALLS[name](place)
        except OSError as exc:
            found[name] = outcome(_raise, exc)
    json.dump(found, sys.stdout)


def _raise(exc: OSError) -> None:
    raise exc


if __name__ == "__main__":
    # Import it by its name, so that there is one table.
    from tests.hard import calls

    calls._load()
    calls._main(sys.argv[1], int(sys.argv[2]))
