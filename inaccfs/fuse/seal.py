"""The seal: a passthrough backing file for every open, to make mmap follow the rules.

FOPEN_DIRECT_IO alone refuses MAP_SHARED, but allows MAP_PRIVATE, and then the first
touch of the mapping raises SIGBUS. With FUSE passthrough the kernel calls the mmap
operation of the open's backing file instead. The backing file decides what happens:

- one without that operation: mmap fails with ENODEV, as for v8's file;
- an empty one: mmap succeeds, and every touch raises SIGBUS;
- the file's own memory: mmap shares it, as for a guest_memfd with that flag.

Reads and writes still come to the daemon: for those, FOPEN_DIRECT_IO has precedence
over FOPEN_PASSTHROUGH. See fs/fuse/passthrough.c.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls

if TYPE_CHECKING:
    from inaccfs.semantics.rules import Mmap

# _IOW(229, 1, struct fuse_backing_map { int32_t fd; uint32_t flags; uint64_t pad; })
_BACKING_OPEN: Final = 0x4010E501
_backing_map = struct.Struct("=iIQ")
# _IOW(229, 2, uint32_t)
_BACKING_CLOSE: Final = 0x4004E502

# Attributes in kernfs that root may open for reading and writing without any effect.
# They are only opened, never read or written.
_KERNFS_FILES: Final = (
    "/sys/kernel/rcu_expedited",
    "/sys/kernel/mm/transparent_hugepage/enabled",
)


_KEPT: Final[dict[str, str]] = {
    "refused": "sealed",
    "SIGBUS": "not sealed: mapped, but a touch is SIGBUS (as the semantics have it)",
    "shared": "not sealed: maps the memory itself (as the semantics have it)",
}


class Seal:
    """The backing file of all opens."""

    def __init__(self, rule: Mmap, backing_id: int = 0, reason: str = "") -> None:
        """*reason* says why mmap does not follow the *rule*; empty if it does."""
        self.rule: Final = rule
        self._backing_id: Final = backing_id
        self._reason: Final = reason

    @property
    def is_kept(self) -> bool:
        """Whether mmap follows the rule."""
        return not self._reason

    @property
    def sealed(self) -> bool:
        """Whether mmap is refused."""
        return self.is_kept and self.rule == "refused"

    def __str__(self) -> str:
        """As `inaccfs status` shows it."""
        return _KEPT[self.rule] if self.is_kept else f"not sealed ({self._reason})"

    def backing_id(self, ino: int, fd: int) -> int:
        """The backing id for a new open of inode *ino*, whose fd is *fd*; 0 if none.

        Raises:
            OSError: the kernel refused to register a backing file.
        """
        return self._backing_id

    def closed(self, ino: int) -> None:
        """One open of the inode has ended."""


class OwnMemory(Seal):
    """Every file is its own backing file: mmap shares its memory."""

    def __init__(self, device: int) -> None:
        """*device* is the /dev/fuse fd, not ours to close."""
        super().__init__("shared")
        self._device: Final = device
        # Id and number of opens by inode, while it is open. All opens of an inode must
        # have the same id, and the next inode with that number needs another one.
        self._ids: Final[dict[int, tuple[int, int]]] = {}

    def backing_id(self, ino: int, fd: int) -> int:
        backing_id, opens = self._ids.get(ino) or (_backing_open(self._device, fd), 0)
        self._ids[ino] = backing_id, opens + 1
        return backing_id

    def closed(self, ino: int) -> None:
        backing_id, opens = self._ids.pop(ino)
        if opens > 1:
            self._ids[ino] = backing_id, opens - 1
        else:
            _backing_close(self._device, backing_id)


def unsealed(reason: str, rule: Mmap = "refused") -> Seal:
    """No seal, and the reason."""
    return Seal(rule, 0, reason)


def _backing_open(device: int, fd: int) -> int:
    request = bytearray(_backing_map.pack(fd, 0, 0))
    backing_id: int = fcntl.ioctl(device, _BACKING_OPEN, request, True)
    return backing_id


def _backing_close(device: int, backing_id: int) -> None:
    fcntl.ioctl(device, _BACKING_CLOSE, struct.pack("=I", backing_id))


def _message_queue() -> int:
    """A POSIX message queue: a regular file with no mmap, read or write.

    For kernels that only require a backing file to be regular.
    """
    return syscalls.anonymous_message_queue(f"/inaccfs-seal-{os.getpid()}")


def _kernfs_file() -> int:
    """A kernfs attribute, for kernels (6.9) that also require read and write."""
    for path in _KERNFS_FILES:
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
    raise OSError(errno.ENOENT, "no kernfs attribute can be opened")


def _empty_file() -> int:
    """An empty file on the kernel's own tmpfs: every page lies past its end."""
    fd = os.memfd_create("inaccfs-empty", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    # A process that maps it can open it by /proc/PID/map_files, and all files share it:
    # seal its size.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


Candidate = Callable[[], int]
CANDIDATES: Final[dict[Mmap, tuple[Candidate, ...]]] = {
    "refused": (_message_queue, _kernfs_file),
    "SIGBUS": (_empty_file,),
    # This is only to find out whether the kernel accepts it.
    "shared": (_empty_file,),
}


def make_seal(
    device: int,
    *,
    passthrough: bool,
    rule: Mmap = "refused",
    page_size: int = mmap.PAGESIZE,
) -> Seal:
    """Register the backing file that the *rule* needs with the connection of *device*.

    *passthrough*: INIT offered FUSE_PASSTHROUGH. Call this after the reply to INIT: the
    kernel accepts no backing files before that. *page_size* is the backing's, in bytes.
    """
    if rule == "shared" and page_size != mmap.PAGESIZE:
        # FUSE would choose addresses and lengths that are not aligned to huge pages.
        return unsealed("memory of a hugetlbfs is not mapped through FUSE", rule)
    if not passthrough:
        reason = "needs Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH"
        return unsealed(reason, rule)
    failures = []
    for candidate in CANDIDATES[rule]:
        try:
            fd = candidate()
        except OSError as exc:
            failures.append(f"{_name(candidate)}: {exc.strerror}")
            continue
        try:
            backing_id = _backing_open(device, fd)
        except PermissionError:
            return unsealed("needs CAP_SYS_ADMIN in the initial user namespace", rule)
        except OSError as exc:
            failures.append(f"{_name(candidate)}: {exc.strerror}")
        else:
            if rule != "shared":
                return Seal(rule, backing_id)
            _backing_close(device, backing_id)
            return OwnMemory(device)
        finally:
            # The connection has its own reference to the file now.
            os.close(fd)
    kind = "a file without mmap" if rule == "refused" else "a file to map"
    return unsealed(f"needs {kind}; " + "; ".join(failures), rule)


def _name(candidate: Candidate) -> str:
    return candidate.__name__.strip("_").replace("_", " ")
