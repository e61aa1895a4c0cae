"""The real memory file system behind the shim: a tmpfs or a hugetlbfs directory.

The seed wraps one shmem file; a mount wraps a whole directory of them. With no
directory given the backing is a tmpfs that hangs in no namespace, so that no
path leads to its bytes and they go when the daemon goes, even by SIGKILL.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from inaccfs import mountinfo, syscalls
from inaccfs.errors import BackingError, OptionError
from inaccfs.shim.usertmpfs import detached_in_user_namespace
from inaccfs.words import natural, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_KNOWN_MAGICS: Final = {
    syscalls.TMPFS_MAGIC: "tmpfs",
    syscalls.HUGETLBFS_MAGIC: "hugetlbfs",
}

_READ: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

HUGE_CHOICES: Final = ("never", "always", "within_size", "advise")

_SIZE: Final = re.compile(r"[0-9]+(?:[kmgtpeKMGTPE]|%)?")


def parse_size(name: str, size: str) -> int:
    """What the *size* of an option comes to, in bytes.

    Raises:
        OptionError: it is none, or too large; the message begins with *name*.
    """
    if not _SIZE.fullmatch(size):
        raise OptionError(
            f"{name} {quoted(size)} is not a size: give bytes, or a number with "
            "k, m, g, t or %, as in 512m"
        )
    unit = "kmgtpe".find(size[-1].lower()) + 1
    number = natural(size.rstrip("kmgtpeKMGTPE%"))
    if number is not None and size.endswith("%"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        number = number * memory // 100
    elif number is not None:
        number <<= 10 * unit
    if number is None or number >= 1 << 63:
        raise OptionError(f"{name} {quoted(size)} is more than a file system can have")
    return number


@dataclass(frozen=True, slots=True)
class TmpfsOptions:
    """How a private tmpfs is made; None leaves a choice to the kernel. tmpfs(5)."""

    size: str | None = None
    huge: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            parse_size("size", self.size)
        if self.huge is not None and self.huge not in HUGE_CHOICES:
            raise OptionError(
                f"huge {quoted(self.huge)} is not one of {', '.join(HUGE_CHOICES)}"
            )

    def as_mount_options(self) -> dict[str, str]:
        """The options as fsconfig(2) takes them."""
        found = {
            "size": self.size,
            "huge": self.huge,
            "mode": None if self.mode is None else f"{self.mode:o}",
            "uid": None if self.uid is None else str(self.uid),
            "gid": None if self.gid is None else str(self.gid),
        }
        return {key: value for key, value in found.items() if value is not None}


@dataclass(eq=False, slots=True)
class Backing:
    """An open directory of a memory file system, and what is known of it."""

    # O_RDONLY | O_DIRECTORY; everything below is reached from here by dir_fd.
    root: int
    # "tmpfs" or "hugetlbfs".
    fstype: str
    # In bytes: 4096 on a tmpfs, the huge page on a hugetlbfs.
    page_size: int
    # None for a private tmpfs; else the directory that the user named.
    directory: str | None
    # What the user ought to know before trusting this backing, a sentence each.
    warnings: list[str] = field(default_factory=list)
    # What is left to do when the backing is closed.
    cleanup: Callable[[], None] | None = None

    @property
    def private(self) -> bool:
        """Whether names and attributes change only through the mount."""
        return self.directory is None

    @property
    def description(self) -> str:
        """For people: what this is, in a few words."""
        if self.directory is None:
            return f"private {self.fstype}"
        return f"{self.directory} ({self.fstype})"

    def close(self) -> None:
        """Let the backing go; a private one gives its memory back."""
        os.close(self.root)
        if self.cleanup is not None:
            self.cleanup()


def wrap(directory: str) -> Backing:
    """Use an existing tmpfs or hugetlbfs *directory*.

    Raises:
        BackingError: it is no directory, or on another kind of file system.
    """
    path = os.path.abspath(directory)
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise BackingError(
            f"backing {path}: {exc.strerror}; name a directory on a tmpfs or hugetlbfs"
        ) from exc
    fstype = _KNOWN_MAGICS.get(syscalls.fstatfs_magic(root))
    if fstype is None:
        os.close(root)
        raise BackingError(
            f"backing {path} is on {_filesystem_name(path)}: it must be on a tmpfs or "
            "hugetlbfs (leave --backing out for a private tmpfs)"
        )
    backing = _opened(root, fstype, path)
    found = os.fstat(root)
    mode = stat.S_IMODE(found.st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        backing.warnings.append(
            f"others can reach the files in {path} itself (mode {mode:04o}): chmod "
            f"0700 {path}, or use a private tmpfs"
        )
    elif found.st_uid != os.geteuid():
        backing.warnings.append(
            f"user {found.st_uid} can reach the files in {path} itself: chown it, or "
            "use a private tmpfs"
        )
    return backing


def open_to_read(dir_fd: int, name: str = ".", *, noatime: bool) -> int:
    """An fd to read a directory with, by its *name* in another, or that one itself.

    With *noatime* its time of access stays, if it is the daemon's to say so; see
    O_NOATIME of open(2). *dir_fd* may be O_PATH.
    """
    if noatime:
        try:
            return os.open(name, _READ | os.O_NOATIME, dir_fd=dir_fd)
        except PermissionError:
            # Somebody else's, in a directory that a plain user has wrapped.
            pass
    return os.open(name, _READ, dir_fd=dir_fd)


def private_tmpfs(
    options: TmpfsOptions, *, fallback_name: str, flags: int = 0
) -> Backing:
    """A tmpfs of the daemon's own that no path reaches.

    Root mounts it detached. Others do so in a user namespace (see `usertmpfs`); where
    that is not allowed, a directory of mode 0700 called *fallback_name* on a tmpfs
    takes its place, with a warning. Of *flags*, MS_* as for mount(2), the tmpfs has
    those about times of access.

    Raises:
        BackingError: the kernel refused the options, or nothing of this is possible.
    """
    wanted = {"mode": "0700", **options.as_mount_options()}
    try:
        if os.geteuid() == 0:
            mount = syscalls.detached_mount("tmpfs", wanted, flags)
        else:
            mount = detached_in_user_namespace(wanted, flags)
    except syscalls.FsConfigError as exc:
        raise BackingError(f"the tmpfs refused {exc.filename}: {exc.strerror}") from exc
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            _refuse_options(wanted)
        if os.geteuid() == 0:
            raise BackingError(
                f"no private tmpfs: {exc.strerror}; it needs CAP_SYS_ADMIN and Linux "
                "5.2 (or name a directory with --backing)"
            ) from exc
        return _directory_on_tmpfs(options, fallback_name, exc)
    try:
        # The fd of fsmount(2) is O_PATH, which cannot be listed.
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)
    return _opened(root, "tmpfs", None)


def _refuse_options(wanted: Mapping[str, str]) -> NoReturn:
    told = ",".join(f"{key}={value}" for key, value in wanted.items())
    raise BackingError(
        f"the kernel refused a tmpfs with {told}: check the values (huge= needs a "
        "kernel with transparent huge pages)"
    )


def _opened(root: int, fstype: str, directory: str | None) -> Backing:
    # f_bsize is the page of a tmpfs and the huge page of a hugetlbfs; st_blksize
    # would not do: a tmpfs with huge=always tells 2 MiB there and still works in
    # small pages.
    return Backing(root, fstype, os.fstatvfs(root).f_bsize, directory)


def _filesystem_name(path: str) -> str:
    """The kernel's name of the file system that holds *path*."""
    found = os.stat(path).st_dev
    device = f"{os.major(found)}:{os.minor(found)}"
    names = [mount.fstype for mount in mountinfo.read() if mount.device == device]
    return names[0] if names else "a file system that is no memory"


def _fallback_parents() -> list[str]:
    candidates = (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm")
    return [parent for parent in candidates if parent and os.path.isdir(parent)]


def remove_fallbacks(name: str) -> None:
    """Remove the fallback directories of that *name* whose daemons were killed."""
    for parent in _fallback_parents():
        for entry in os.listdir(parent):
            if entry.rpartition(".")[0] == name:
                # Somebody else's, or gone since.
                with suppress(OSError):
                    _remove_if_dead(os.path.join(parent, entry))


def _remove_if_dead(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Its daemon holds this lock for as long as it lives.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_uid == os.geteuid():
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)


def _directory_on_tmpfs(options: TmpfsOptions, name: str, cause: OSError) -> Backing:
    """The fallback of `private_tmpfs` for a user who may not make namespaces."""
    if options.size is not None or options.huge is not None:
        raise BackingError(
            "size and huge need a tmpfs of one's own, and a user namespace was "
            f"refused ({cause.strerror}): leave them out, or mount as root"
        )
    remove_fallbacks(name)
    for parent in _fallback_parents():
        path = os.path.join(parent, f"{name}.{os.getpid()}")
        try:
            os.mkdir(path, 0o700)
            root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        if _KNOWN_MAGICS.get(syscalls.fstatfs_magic(root)) != "tmpfs":
            os.close(root)
            os.rmdir(path)
            continue
        fcntl.flock(root, fcntl.LOCK_EX)
        if options.mode is not None:
            os.fchmod(root, options.mode)
        backing = _opened(root, "tmpfs", path)
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
