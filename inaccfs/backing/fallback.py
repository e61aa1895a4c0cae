"""A directory on a tmpfs of the system, for a user who may not create namespaces.

It is called NAME.PID and locked by flock(2) for as long as its daemon lives. The lock
tells a live daemon's directory from one that a killed daemon has left, also if that
daemon was in another pid namespace.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

from inaccfs.backing.root import Backing, memory_file_system, open_root
from inaccfs.errors import BackingError

if TYPE_CHECKING:
    from inaccfs.backing.options import TmpfsOptions


def directory_on_tmpfs(options: TmpfsOptions, name: str, cause: OSError) -> Backing:
    """Make the directory; *cause* is why there is no private tmpfs.

    Raises:
        BackingError: the *options* need a private tmpfs, or no tmpfs of the system is
            writable.
    """
    if options.size is not None or options.huge is not None:
        raise BackingError(
            "size and huge need a tmpfs of one's own, and a user namespace was "
            f"refused ({cause.strerror}): leave them out, or mount as root"
        )
    remove_fallbacks(name)
    for parent in _parents():
        path = os.path.join(parent, f"{name}.{os.getpid()}")
        try:
            root = _make_and_lock(path)
        except OSError:
            continue
        if memory_file_system(root) != "tmpfs":
            os.close(root)
            os.rmdir(path)
            continue
        if options.mode is not None:
            os.fchmod(root, options.mode)
        backing = Backing.of(root, "tmpfs", path)
        backing.cleanup = partial(shutil.rmtree, path, ignore_errors=True)
        backing.warnings.append(
            f"no user namespace ({cause.strerror}): the memory is in {path}, which "
            "your own processes can read"
        )
        return backing
    raise BackingError(
        f"no private tmpfs: a user namespace was refused ({cause.strerror}) and "
        "neither $XDG_RUNTIME_DIR nor /dev/shm is a writable tmpfs; use --backing DIR"
    )


def _make_and_lock(path: str) -> int:
    """Make a directory, and lock it; an fd of it.

    Until it is locked, another process takes it for a dead daemon's and removes it.
    """
    while True:
        os.mkdir(path, 0o700)
        with suppress(FileNotFoundError), ExitStack() as undo:
            root = open_root(path)
            undo.callback(os.close, root)
            fcntl.flock(root, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(root), os.stat(path)):
                undo.pop_all()
                return root


def remove_fallbacks(name: str) -> None:
    """Remove the directories called *name* that killed daemons have left."""
    for parent in _parents():
        for entry in os.listdir(parent):
            if entry.rpartition(".")[0] == name:
                # It may be another user's, a live daemon's, or removed by now.
                with suppress(OSError):
                    _remove_if_dead(os.path.join(parent, entry))


def _parents() -> list[str]:
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")
    return [parent for parent in candidates if parent and os.path.isdir(parent)]


def _remove_if_dead(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)
