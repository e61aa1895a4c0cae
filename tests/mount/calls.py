"""Calls that change a file, and what they change, made in a separate process.

python -m tests.mount.calls PLACE UID GID OWNER GROUP: with files of OWNER and GROUP in
the directory PLACE, as user UID. Prints JSON: for each call its result, and what has
become of mode, size and times. A test compares it with the same on a tmpfs.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

from tests.mount import raw
from tests.mount.support import PAGE, opened, outcome

if TYPE_CHECKING:
    from collections.abc import Callable

MODES: Final = (0o644, 0o6777, 0o4755, 0o2755, 0o2745, 0o6766, 0o666)

# Long ago, in nanoseconds.
_AGES_AGO: Final = 1_000_000_000 * 10**9


def _ftruncate(path: str, size: int) -> None:
    with opened(path) as fd:
        os.ftruncate(fd, size)


def _fallocate(path: str, mode: int) -> None:
    with opened(path) as fd:
        raw.fallocate(fd, mode, 0, PAGE)


def _open(path: str, flags: int) -> None:
    with opened(path, flags):
        pass


CALLS: Final[dict[str, Callable[[str], None]]] = {
    "chown(-1, -1)": lambda path: os.chown(path, -1, -1),
    "chown(owner, -1)": lambda path: os.chown(path, os.stat(path).st_uid, -1),
    "chown(-1, group)": lambda path: os.chown(path, -1, os.stat(path).st_gid),
    "truncate(0)": lambda path: os.truncate(path, 0),
    "truncate(PAGE)": lambda path: os.truncate(path, PAGE),
    "ftruncate(0)": lambda path: _ftruncate(path, 0),
    "ftruncate(PAGE)": lambda path: _ftruncate(path, PAGE),
    "O_TRUNC": lambda path: _open(path, os.O_WRONLY | os.O_TRUNC),
    "O_CREAT|O_TRUNC": lambda path: _open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC),
    "open": lambda path: _open(path, os.O_RDWR),
    "fallocate": lambda path: _fallocate(path, 0),
    "fallocate, KEEP_SIZE": lambda path: _fallocate(path, raw.KEEP_SIZE),
    "punch": lambda path: _fallocate(path, raw.PUNCH_HOLE | raw.KEEP_SIZE),
    "chmod": lambda path: os.chmod(path, stat.S_IMODE(os.stat(path).st_mode)),
    "chmod 6755": lambda path: os.chmod(path, 0o6755),
    "utime": os.utime,
}


def _wait_for_a_tick(path: str) -> None:
    """Wait until a change gets another time than the last change of *path*."""
    changed = os.stat(path).st_ctime_ns
    while True:
        os.utime("clock")
        if os.stat("clock").st_ctime_ns > changed:
            return


def _effects(path: str, call: Callable[[str], None]) -> list[object]:
    _wait_for_a_tick(path)
    before = os.stat(path)
    result = outcome(call, path)
    after = os.stat(path)
    changed = [
        name
        for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
        if getattr(before, name) != getattr(after, name)
    ]
    return [result, f"{after.st_mode:o}", after.st_size, *changed]


def main() -> None:
    """Make the calls."""
    place, uid, gid, owner, group = sys.argv[1], *map(int, sys.argv[2:])
    os.chdir(place)
    os.chmod(".", 0o777)
    todo: list[tuple[str, Callable[[str], None]]] = []
    for mode in MODES:
        for name, call in CALLS.items():
            path = f"{mode:o} {name}"
            with opened(path, os.O_CREAT | os.O_RDWR):
                os.chown(path, owner, group)
                os.chmod(path, mode)
                os.utime(path, ns=(_AGES_AGO, _AGES_AGO))
            todo.append((path, call))
    for name in ("chown(-1, -1)", "chown(owner, -1)", "chmod", "utime"):
        path = f"directory {name}"
        os.mkdir(path)
        os.chown(path, owner, group)
        os.chmod(path, 0o6777)
        todo.append((path, CALLS[name]))
    os.close(os.open("clock", os.O_CREAT | os.O_RDWR, 0o600))
    os.chown("clock", uid, gid)
    if uid:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    print(json.dumps({path: _effects(path, call) for path, call in todo}))


if __name__ == "__main__":
    main()
