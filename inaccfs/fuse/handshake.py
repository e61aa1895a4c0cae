"""INIT: what the kernel offers, and what the mount uses of it.

See fuse_init_in and fuse_init_out of include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from inaccfs.fuse import wire

_u32 = struct.Struct("=I")
# fuse_init_in: major, minor, max_readahead, flags, flags2, unused
_init_in = struct.Struct(f"={wire.IN_HEADER_SIZE}xIIII")
_INIT_IN_SIZE: Final = wire.IN_HEADER_SIZE + 16
_INIT_FLAGS_AT: Final = wire.IN_HEADER_SIZE + 12
_INIT_FLAGS2_AT: Final = wire.IN_HEADER_SIZE + 16
# fuse_init_out: major, minor, max_readahead, flags, max_background,
# congestion_threshold, max_write, time_gran, max_pages, map_alignment, flags2,
# max_stack_depth, unused
_init_out = struct.Struct("=IIIIHHIIHHII24x")

_INIT_ATOMIC_O_TRUNC: Final = 1 << 3
_INIT_EXPORT_SUPPORT: Final = 1 << 4
_INIT_BIG_WRITES: Final = 1 << 5
_INIT_DO_READDIRPLUS: Final = 1 << 13
_INIT_PARALLEL_DIROPS: Final = 1 << 18
_INIT_HANDLE_KILLPRIV_V2: Final = 1 << 28
_INIT_EXT: Final = 1 << 30
_INIT_PASSTHROUGH: Final = 1 << 37
_INIT_NO_EXPORT_SUPPORT: Final = 1 << 38
_INIT_ALLOW_IDMAP: Final = 1 << 40

# What the mount uses if the kernel offers it. HANDLE_KILLPRIV_V2 saves a GETXATTR of
# security.capability before each fallocate. With ALLOW_IDMAP the kernel sends the uid
# and gid of the caller only in requests that make an inode.
_WANTED: Final = (
    _INIT_ATOMIC_O_TRUNC
    | _INIT_BIG_WRITES
    | _INIT_DO_READDIRPLUS
    | _INIT_PARALLEL_DIROPS
    | _INIT_HANDLE_KILLPRIV_V2
    | _INIT_EXT
    | _INIT_PASSTHROUGH
    | _INIT_ALLOW_IDMAP
)

_MINOR: Final = 40
_NANOSECOND_GRANULARITY: Final = 1
# The size if writes are refused: one page of data is more than enough.
_MAX_WRITE: Final = 4096
# The size if writes fill files: as much as fits into the buffer of a request.
_MAX_FILLING_WRITE: Final = 65536
_MAX_BACKGROUND: Final = 64


class Init(NamedTuple):
    """The kernel's offer in INIT."""

    minor: int
    flags: int

    @property
    def passthrough(self) -> bool:
        """Whether the kernel has FUSE_PASSTHROUGH: Linux 6.9 and later."""
        return bool(self.flags & _INIT_PASSTHROUGH)


def parse_init(request: bytearray, size: int) -> Init:
    """Read INIT."""
    wire.need(size, _INIT_IN_SIZE)
    _, minor, _, flags = _init_in.unpack_from(request)
    if flags & _INIT_EXT and size >= _INIT_FLAGS2_AT + 4:
        flags |= _u32.unpack_from(request, _INIT_FLAGS2_AT)[0] << 32
    return Init(minor, flags)


LARGEST_INIT_REPLY: Final = wire.OUT_HEADER_SIZE + _init_out.size


def init_for_relay(request: bytearray, size: int) -> bytes:
    """The INIT for pyfuse3, which needs only the flag READDIRPLUS."""
    relayed = request[:size]
    (flags,) = _u32.unpack_from(relayed, _INIT_FLAGS_AT)
    _u32.pack_into(relayed, _INIT_FLAGS_AT, flags & _INIT_DO_READDIRPLUS)
    return bytes(relayed)


def pack_init(init: Init, *, handles: bool = False, writes: bool = False) -> bytes:
    """struct fuse_init_out: what the mount accepts of the kernel's offer.

    *handles*: a node can be found by its number after the kernel forgot it, so file
    handles work; otherwise name_to_handle_at(2) fails with EOPNOTSUPP. *writes*:
    write(2) fills files.
    """
    about_handles = _INIT_EXPORT_SUPPORT if handles else _INIT_NO_EXPORT_SUPPORT
    flags = init.flags & (_WANTED | about_handles)
    return _init_out.pack(
        7,
        min(init.minor, _MINOR),
        0,
        flags & 0xFFFFFFFF,
        _MAX_BACKGROUND,
        _MAX_BACKGROUND * 3 // 4,
        _MAX_FILLING_WRITE if writes else _MAX_WRITE,
        _NANOSECOND_GRANULARITY,
        0,
        0,
        flags >> 32,
        1 if flags & _INIT_PASSTHROUGH else 0,
    )
