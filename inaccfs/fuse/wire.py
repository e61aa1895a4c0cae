"""The messages of the FUSE protocol that our own handlers read and write.

Layouts and numbers are those of include/uapi/linux/fuse.h, protocol 7.40; only
COPY_FILE_RANGE_64, which is refused, is of 7.45. Every message is in the host's byte
order. All functions are pure.
"""

from __future__ import annotations

import enum
import errno
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.errnos import os_error

if TYPE_CHECKING:
    import os

ROOT_ID: Final = 1


class Op(enum.IntEnum):
    """enum fuse_opcode: the opcodes that inaccfs knows."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


OP_TABLE_SIZE: Final = 64

# fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
IN_HEADER_SIZE: Final = 40
unpack_header = struct.Struct("=IIQQ").unpack_from  # len, opcode, unique, nodeid
unpack_caller = struct.Struct("=24xII").unpack_from  # uid, gid
unpack_pid = struct.Struct("=32xI").unpack_from

# fuse_out_header: len, error, unique
OUT_HEADER_SIZE: Final = 16
_out_header = struct.Struct("=IiQ")
unpack_out_header = _out_header.unpack_from

# The offset of the arguments, after the request header.
_ARGUMENTS: Final = IN_HEADER_SIZE
# fuse_fallocate_in: fh, offset, length, mode, padding
# (Signed as in fallocate(2), though the kernel sends no negative ones.)
unpack_fallocate = struct.Struct(f"={_ARGUMENTS}x8xqqI").unpack_from
FALLOCATE_SIZE: Final = _ARGUMENTS + 32
# fuse_open_in: flags, open_flags
unpack_open = struct.Struct(f"={_ARGUMENTS}xII").unpack_from
OPEN_SIZE: Final = _ARGUMENTS + 8
# In open_flags: the truncation removes the set-ID bits.
OPEN_KILL_SUIDGID: Final = 1 << 0
# fuse_create_in: flags, mode, umask, open_flags; the name follows
unpack_create = struct.Struct(f"={_ARGUMENTS}xII").unpack_from
CREATE_SIZE: Final = _ARGUMENTS + 16
# fuse_rename_in: newdir; fuse_rename2_in: newdir, flags, padding; two names follow
_rename = struct.Struct(f"={_ARGUMENTS}xQI").unpack_from
_RENAME_SIZE: Final = _ARGUMENTS + 8
_RENAME2_SIZE: Final = _ARGUMENTS + 16
# fuse_forget_in: nlookup
unpack_forget = struct.Struct(f"={_ARGUMENTS}xQ").unpack_from
FORGET_SIZE: Final = _ARGUMENTS + 8
# fuse_batch_forget_in: count, dummy; then fuse_forget_one: nodeid, nlookup
unpack_batch_forget = struct.Struct(f"={_ARGUMENTS}xI").unpack_from
_BATCH_FORGET_SIZE: Final = _ARGUMENTS + 8
_forget_one = struct.Struct("=QQ")
# fuse_interrupt_in: unique
unpack_interrupt = struct.Struct(f"={_ARGUMENTS}xQ").unpack_from
INTERRUPT_SIZE: Final = _ARGUMENTS + 8
# fuse_read_in: fh, offset, size, ...; READDIRPLUS uses it, too, and fuse_write_in
# begins with the same
unpack_range = struct.Struct(f"={_ARGUMENTS}x8xQI").unpack_from
RANGE_SIZE: Final = _ARGUMENTS + 20
_WRITE_SIZE: Final = _ARGUMENTS + 40
_READ_SIZE_AT: Final = _ARGUMENTS + 16
# fuse_setattr_in: valid, padding, fh, size, lock_owner, atime, mtime, ctime, their
# nanoseconds, mode, unused4, uid, gid, unused5
# (Times are signed: some are before 1970.)
_setattr = struct.Struct(f"={_ARGUMENTS}xI4x8xQ8xqq8xII4xI4xII4x")
# fuse_getxattr_in: size, padding; then the name
_GETXATTR_SIZE_AT: Final = _ARGUMENTS
_GETXATTR_NAME_AT: Final = _ARGUMENTS + 8
_u32 = struct.Struct("=I")
_u64 = struct.Struct("=Q")


# The most that the kernel sends: an extended attribute of 64 KiB, and its headers.
REQUEST_BUFFER_SIZE: Final = 65536 + 8192


class Truncated(ValueError):
    """A message is shorter than its kind of message must be."""


def need(size: int, wanted: int) -> None:
    """Check that a request has its arguments.

    Raises:
        Truncated: it is shorter.
    """
    if size < wanted:
        raise Truncated(f"request of {size} bytes, {wanted} needed")


def name_at(request: bytearray, start: int, size: int) -> bytes:
    """The NUL-terminated name, of one directory entry, at *start* of a request.

    Raises:
        Truncated: the name is empty, or has no NUL.
        OSError: EINVAL, it leads out of the directory. The kernel sends no such name.
    """
    name = _text_at(request, start, size)
    if name in DOTS or b"/" in name:
        raise os_error(errno.EINVAL)
    return name


def _text_at(request: bytearray, start: int, size: int) -> bytes:
    end = request.find(0, start, size)
    if end <= start:
        raise Truncated("a name is empty or has no end")
    return bytes(request[start:end])


def only_name(request: bytearray, size: int) -> bytes:
    """The only argument of UNLINK and RMDIR, a name. Raises as `name_at`."""
    return name_at(request, _ARGUMENTS, size)


DOTS: Final = frozenset((b".", b".."))


def looked_up(request: bytearray, size: int) -> bytes:
    """The name that LOOKUP asks for: an entry's, or one of `DOTS`.

    With a dot the kernel asks for the node itself, with two for the directory that it
    is in: see FUSE_EXPORT_SUPPORT. Raises as `name_at`.
    """
    name = _text_at(request, _ARGUMENTS, size)
    if b"/" in name:
        raise os_error(errno.EINVAL)
    return name


def rename_names(
    request: bytearray, size: int, *, with_flags: bool
) -> tuple[int, int, bytes, bytes]:
    """(newdir, flags, oldname, newname) of RENAME, or of RENAME2 *with_flags*."""
    start = _RENAME2_SIZE if with_flags else _RENAME_SIZE
    need(size, start)
    newdir, flags = _rename(request)
    old = name_at(request, start, size)
    new = name_at(request, start + len(old) + 1, size)
    return newdir, flags if with_flags else 0, old, new


def getxattr_name(request: bytearray, size: int) -> bytes:
    """The attribute that GETXATTR asks for."""
    return _text_at(request, _GETXATTR_NAME_AT, size)


def written(request: bytearray, size: int) -> tuple[int, bytes]:
    """The offset and the data of WRITE."""
    need(size, _WRITE_SIZE)
    offset, length = unpack_range(request)
    need(size, _WRITE_SIZE + length)
    return offset, bytes(memoryview(request)[_WRITE_SIZE : _WRITE_SIZE + length])


# fuse_write_out: size, padding
pack_write = struct.Struct("=I4x").pack


class Setattr(NamedTuple):
    """struct fuse_setattr_in. *size* is bytes; times are seconds and nanoseconds."""

    valid: int
    size: int
    atime: int
    mtime: int
    atimensec: int
    mtimensec: int
    mode: int
    uid: int
    gid: int


FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_FH: Final = 1 << 6
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8
FATTR_KILL_SUIDGID: Final = 1 << 11


def setattr_in(request: bytearray, size: int) -> Setattr:
    """The changes in a SETATTR request."""
    need(size, _setattr.size)
    return Setattr._make(_setattr.unpack_from(request))


def forgets(request: bytearray, size: int) -> list[tuple[int, int]]:
    """The (nodeid, nlookup) pairs of BATCH_FORGET."""
    need(size, _BATCH_FORGET_SIZE)
    (count,) = unpack_batch_forget(request)
    need(size, _BATCH_FORGET_SIZE + count * _forget_one.size)
    return [
        _forget_one.unpack_from(request, _BATCH_FORGET_SIZE + i * _forget_one.size)
        for i in range(count)
    ]


def largest_reply(op: int, request: bytearray, size: int) -> int:
    """The largest size of the reply to a request, in bytes."""
    if op in (Op.READDIR, Op.READDIRPLUS):
        need(size, _READ_SIZE_AT + 4)
        return OUT_HEADER_SIZE + int(_u32.unpack_from(request, _READ_SIZE_AT)[0])
    if op in (Op.GETXATTR, Op.LISTXATTR):
        need(size, _GETXATTR_SIZE_AT + 4)
        asked = int(_u32.unpack_from(request, _GETXATTR_SIZE_AT)[0])
        return OUT_HEADER_SIZE + max(asked, 8)
    # The largest reply to the others is a link's target, of 4095 bytes.
    return OUT_HEADER_SIZE + 4096


def clamp_readdir(request: bytearray, size: int, most: int) -> None:
    """Reduce READDIR or READDIRPLUS to at most *most* bytes of entries."""
    need(size, _READ_SIZE_AT + 4)
    (asked,) = _u32.unpack_from(request, _READ_SIZE_AT)
    if asked > most:
        _u32.pack_into(request, _READ_SIZE_AT, most)


# --- replies ----------------------------------------------------------------

pack_reply = _out_header.pack  # len, error (0 or a negative errno), unique

# fuse_attr: ino, size, blocks, atime, mtime, ctime; their nanoseconds; mode, nlink,
# uid, gid, rdev, blksize, flags
_ATTR: Final = "QQQqqqIIIIIIIIII"
_ATTR_SIZE: Final = 88
# fuse_attr_out: attr_valid, attr_valid_nsec, dummy; fuse_attr
_attr_out = struct.Struct(f"=QII{_ATTR}").pack
_ATTR_AT: Final = 16
# fuse_entry_out: nodeid, generation, entry_valid, attr_valid, their nanoseconds;
# fuse_attr
_entry_header = struct.Struct("=QQQQII").pack
# fuse_open_out: fh, open_flags, backing_id
_open = struct.Struct("=QIi")
# fuse_statx_out: attr_valid, attr_valid_nsec, flags, spare[2]; then a fuse_statx. Its
# first _STATX_USED bytes have the layout of the struct statx of statx(2).
_statx_header = struct.Struct("=QII16x").pack
_STATX_INO_AT: Final = 32
_STATX_USED: Final = 144
_STATX_SIZE: Final = 256

_BILLION: Final = 1_000_000_000


class Entry(NamedTuple):
    """The description of an inode in a reply. Timeouts are whole seconds."""

    nodeid: int
    generation: int
    attributes: os.stat_result
    entry_valid: int
    attr_valid: int


def pack_attr(nodeid: int, attributes: os.stat_result, attr_valid: int) -> bytes:
    """struct fuse_attr_out."""
    # Unpacking the tuple, whose times are whole seconds, is twice as fast as by name.
    mode, _, _, nlink, uid, gid, size, atime, mtime, ctime = attributes
    return _attr_out(
        attr_valid,
        0,
        0,
        nodeid,
        size,
        attributes.st_blocks,
        atime,
        mtime,
        ctime,
        attributes.st_atime_ns % _BILLION,
        attributes.st_mtime_ns % _BILLION,
        attributes.st_ctime_ns % _BILLION,
        mode,
        nlink,
        uid,
        gid,
        # The low half of a glibc dev_t equals new_encode_dev() of the kernel.
        attributes.st_rdev & 0xFFFFFFFF,
        attributes.st_blksize,
        0,
    )


def pack_statx(nodeid: int, statx: bytes, attr_valid: int) -> bytes:
    """struct fuse_statx_out, from the backing's struct statx."""
    found = bytearray(statx[:_STATX_USED])
    _u64.pack_into(found, _STATX_INO_AT, nodeid)
    header = _statx_header(attr_valid, 0, 0)
    return header + found + bytes(_STATX_SIZE - _STATX_USED)


def pack_entry(entry: Entry) -> bytes:
    """struct fuse_entry_out."""
    header = _entry_header(
        entry.nodeid, entry.generation, entry.entry_valid, entry.attr_valid, 0, 0
    )
    return header + pack_attr(entry.nodeid, entry.attributes, 0)[_ATTR_AT:]


def pack_no_entry(entry_valid: int) -> bytes:
    """A struct fuse_entry_out that says: no such name, for *entry_valid* seconds."""
    header = _entry_header(0, 0, entry_valid, 0, 0, 0)
    return header + bytes(_ATTR_SIZE)


def pack_open(fh: int, open_flags: int, backing_id: int) -> bytes:
    """struct fuse_open_out."""
    return _open.pack(fh, open_flags, backing_id)


FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_NONSEEKABLE: Final = 1 << 2
FOPEN_NOFLUSH: Final = 1 << 5
FOPEN_PASSTHROUGH: Final = 1 << 7
