"""The status of a mount: one typed message, which the daemon makes.

It travels in the virtual xattr `user.inaccfs.status` of the mount's root, so that a
mountpoint is all that a reader needs.
"""

from __future__ import annotations

import msgspec

MAGIC_XATTR = "user.inaccfs.magic"
STATUS_XATTR = "user.inaccfs.status"
CONTROL_XATTR = "user.inaccfs.control"


class Status(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A mount at one moment."""

    # Bytes that are not UTF-8 are escaped, here and below.
    mountpoint: str
    # For people: "private tmpfs", or the wrapped directory.
    backing: str
    # In bytes: the capacity of the backing; 0 if it has no limit.
    size: int
    # In bytes: the unit of allocated_pages.
    page_size: int
    # Regular files that have a name, or are open.
    files: int
    # The number of allocated pages.
    allocated_pages: int
    # The rules: a version's name, or FILE.py:CLASS.
    semantics: str
    # Whether every mmap is refused.
    sealed: bool
    # "sealed", "not sealed (needs ...)", or what else mmap does by the rules.
    mmap: str
    # Where page frame numbers come from: "pagemap" or "simulated".
    pfn_source: str
    # What keeps fetched pages in their frames: "io_uring", "mlock (...)", "none (...)",
    # or "simulated".
    pinning: str
    # The pid of the daemon.
    pid: int
    # The control socket's path.
    control: str
    # Where the daemon writes its log; null for its standard error.
    log: str | None
    # The version of inaccfs.
    version: str
    # A process that traced the daemon when it started, "strace (pid 12)", and may have
    # reached its memory and files; left out if there was none.
    tracer: str | None = None


encode = msgspec.json.encode
DecodeError = msgspec.DecodeError
_decoder = msgspec.json.Decoder(Status)


def decode(data: bytes) -> Status:
    """Read a status.

    Raises:
        DecodeError: another version of inaccfs has written it.
    """
    return _decoder.decode(data)
