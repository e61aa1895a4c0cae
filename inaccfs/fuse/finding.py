"""Finds the mounts of inaccfs, and whether their daemons live."""

from __future__ import annotations

import errno
import os
import queue
import threading
from typing import TYPE_CHECKING, Final, TypeVar

from inaccfs import mountinfo
from inaccfs.errnos import os_error
from inaccfs.errors import (
    NoAnswerError,
    NotMountedError,
    OptionError,
    starting_thread,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.mountinfo import MountInfo

T = TypeVar("T")

FSTYPE: Final = "fuse.inaccfs"

_ANSWER_SECONDS: Final = 5.0

DAEMON_SECONDS: Final = 10.0
"""How long a daemon may take to answer. If this is too short, users notice it."""


def mounts() -> list[MountInfo]:
    """All inaccfs mounts that this process can see, oldest first."""
    return [mount for mount in mountinfo.read() if mount.fstype == FSTYPE]


def resolve(path: str) -> str:
    """An absolute path without links, as mountinfo has it.

    Never accesses a mountpoint itself, and what is above it only if necessary: either
    may belong to a dead daemon, or to the calling one.

    Raises:
        OptionError: *path* is empty, which a script's unset variable makes it.
        NoAnswerError: it leads into a FUSE file system that does not answer.
    """
    if not path:
        raise OptionError("the path of the mountpoint is empty: name a directory")
    wanted = os.path.abspath(path)
    there = mountinfo.read()
    places = {mount.path for mount in there}
    waits = any(mount.fstype.startswith("fuse") for mount in there)
    if wanted in places:
        # Do not resolve it further: it may be in a mount whose daemon hangs.
        return wanted
    parent, name = os.path.split(wanted)
    resolved = os.path.join(_without_links(parent, waits=waits), name)
    if resolved not in places and os.path.islink(resolved):
        return _without_links(resolved, waits=waits)
    return resolved


def _without_links(path: str, *, waits: bool) -> str:
    """*path* by realpath(3). With *waits* some daemon may have to answer."""
    try:
        if not waits:
            return os.path.realpath(path)
        return ask(lambda: os.path.realpath(path), _ANSWER_SECONDS)
    except TimeoutError:
        raise NoAnswerError(
            f"{path}: the daemon of a mount on the way does not answer"
        ) from None
    except OSError:
        # A link on the way was replaced while realpath() looked at it: between lstat(2)
        # and readlink(2). Opening the path will tell what is there now.
        return path


def find(path: str) -> MountInfo:
    """The inaccfs mount at *path*.

    Raises:
        NotMountedError: there is none.
    """
    wanted = resolve(path)
    here = [mount for mount in mountinfo.read() if mount.path == wanted]
    if here and here[-1].fstype == FSTYPE:
        return here[-1]
    if any(mount.fstype == FSTYPE for mount in here):
        raise NotMountedError(
            f"{wanted} is an inaccfs mount that a {here[-1].fstype} covers: umount "
            f"{wanted} first"
        )
    raise NotMountedError(
        f"{wanted} is not an inaccfs mount (inaccfs status lists them)"
    )


def above(mount: MountInfo) -> list[MountInfo]:
    """The inaccfs mounts that *mount* is in, the outermost first."""
    numbers = {one.number: one for one in mountinfo.read()}
    found = []
    # The root is its own parent, or one that is not visible.
    while (parent := numbers.get(mount.parent)) is not None and parent != mount:
        mount = parent
        if mount.fstype == FSTYPE:
            found.append(mount)
    return found[::-1]


def holding(path: str) -> MountInfo:
    """The inaccfs mount that the file at *path* is in.

    Follows no link inside of a mount that the path leads into, for its daemon may hang;
    then *path* need not exist. A file without a name has one in /proc/PID/fd.

    Raises:
        NotMountedError: it is in another file system, or there is none.
        OptionError: *path* is empty.
    """
    if not path:
        raise OptionError("the path of the file is empty: name a file")
    wanted = os.path.abspath(path)
    if (found := _holding(wanted)) is not None:
        return found
    try:
        real = ask(lambda: os.path.realpath(wanted), _ANSWER_SECONDS)
        if (found := _holding(real)) is not None:
            return found
        device = ask(lambda: os.stat(wanted).st_dev, _ANSWER_SECONDS)
        number = f"{os.major(device)}:{os.minor(device)}"
        for mount in mounts():
            if mount.device == number:
                return mount
    except (FileNotFoundError, PermissionError) as exc:
        raise NotMountedError(f"{wanted}: {exc.strerror}") from None
    except OSError:
        pass
    raise NotMountedError(
        f"{wanted} is not in an inaccfs mount (inaccfs status lists them)"
    )


def _holding(wanted: str) -> MountInfo | None:
    """The mount that *wanted* leads into by its name, if that is one of inaccfs."""
    places = {mount.path: mount for mount in mountinfo.read()}
    place = wanted
    while place not in places and place != "/":
        place = os.path.dirname(place)
    mount = places.get(place)
    if mount is None or mount.fstype != FSTYPE:
        return None
    # A bind mount of a directory has another root, which does not say whose it is.
    return next(one for one in mounts() if one.device == mount.device)


def ask(question: Callable[[], T], seconds: float) -> T:
    """Call *question*, which waits for the daemon of a mount, for at most *seconds*.

    Raises:
        TimeoutError: no answer in time: the daemon is stopped.
        OSError: *question* raised it.
        NoThreadError: no thread can be started.
    """
    answers: queue.SimpleQueue[T | OSError] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(question())
        except OSError as exc:
            answers.put(exc)

    # A thread that waits for a stopped daemon cannot be ended, only abandoned.
    thread = threading.Thread(target=run, daemon=True)
    with starting_thread():
        thread.start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise os_error(errno.ETIMEDOUT) from None
    # A caller may fork next.
    thread.join()
    if isinstance(answer, OSError):
        raise answer
    return answer


def means_dead(exc: OSError) -> bool:
    """Whether an error shows that the daemon of a mount is dead."""
    return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def is_dead(path: str) -> bool:
    """Whether the daemon of the mount at *path* is dead; one that is stopped is not.

    Asks for statvfs, because the kernel may answer stat from its cache.
    """
    try:
        ask(lambda: os.statvfs(path), _ANSWER_SECONDS)
    except OSError as exc:
        return means_dead(exc)
    return False
