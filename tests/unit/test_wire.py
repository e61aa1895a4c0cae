"""The wire: sizes and numbers of include/uapi/linux/fuse.h, and back again."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs.fuse import handshake, wire
from inaccfs.fuse.wire import Op
from tests.unit import fakes

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER = fakes.IN_HEADER.size


def request(body: bytes, op: int = 0) -> tuple[bytearray, int]:
    """A message in a buffer that is larger than it, as the channel has it."""
    size = HEADER + len(body)
    header = fakes.IN_HEADER.pack(size, op, 8, 1, 1000, 1001, 7, 0, 0)
    # The rest of an earlier request.
    return bytearray(header + body + b"stale\0" * 20), size


# --- sizes and numbers ------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "in_fuse_h"),
    [
        pytest.param(wire.IN_HEADER_SIZE, 40, id="fuse_in_header"),
        pytest.param(wire.OUT_HEADER_SIZE, 16, id="fuse_out_header"),
        pytest.param(wire.FALLOCATE_SIZE, 40 + 32, id="fuse_fallocate_in"),
        pytest.param(wire.OPEN_SIZE, 40 + 8, id="fuse_open_in"),
        pytest.param(wire.CREATE_SIZE, 40 + 16, id="fuse_create_in"),
        pytest.param(wire.FORGET_SIZE, 40 + 8, id="fuse_forget_in"),
        pytest.param(wire.INTERRUPT_SIZE, 40 + 8, id="fuse_interrupt_in"),
        pytest.param(len(wire.pack_open(1, 2, 3)), 16, id="fuse_open_out"),
        pytest.param(len(wire.pack_no_entry(0)), 128, id="fuse_entry_out"),
        pytest.param(len(wire.pack_attr(1, os.stat("/"), 0)), 104, id="fuse_attr_out"),
        pytest.param(
            len(handshake.pack_init(handshake.Init(40, 0))), 64, id="fuse_init_out"
        ),
    ],
)
def test_a_message_has_the_size_that_fuse_h_gives_it(ours: int, in_fuse_h: int) -> None:
    assert ours == in_fuse_h


@pytest.mark.parametrize(
    ("op", "number"),
    [
        (Op.LOOKUP, 1), (Op.FORGET, 2), (Op.GETATTR, 3), (Op.SETATTR, 4),
        (Op.UNLINK, 10), (Op.RENAME, 12), (Op.OPEN, 14), (Op.READ, 15),
        (Op.WRITE, 16), (Op.STATFS, 17), (Op.RELEASE, 18), (Op.GETXATTR, 22),
        (Op.INIT, 26), (Op.READDIR, 28), (Op.CREATE, 35), (Op.INTERRUPT, 36),
        (Op.DESTROY, 38), (Op.IOCTL, 39), (Op.BATCH_FORGET, 42), (Op.FALLOCATE, 43),
        (Op.READDIRPLUS, 44), (Op.RENAME2, 45), (Op.LSEEK, 46),
        (Op.COPY_FILE_RANGE, 47), (Op.TMPFILE, 51), (Op.COPY_FILE_RANGE_64, 53),
    ],
)  # fmt: skip
def test_opcodes(op: Op, number: int) -> None:
    assert op == number < wire.OP_TABLE_SIZE


@pytest.mark.parametrize(
    ("flag", "bit"),
    [
        (wire.FOPEN_DIRECT_IO, 0),
        (wire.FOPEN_NONSEEKABLE, 2),
        (wire.FOPEN_NOFLUSH, 5),
        (wire.FOPEN_PASSTHROUGH, 7),
    ],
)
def test_open_flags(flag: int, bit: int) -> None:
    assert flag == 1 << bit


# --- requests ---------------------------------------------------------------------


def test_a_header_and_its_caller_are_read() -> None:
    message, size = request(b"", op=43)
    assert wire.unpack_header(message) == (size, 43, 8, 1)
    assert wire.unpack_caller(message) == (1000, 1001)


i64 = st.integers(-1 << 63, (1 << 63) - 1)


@given(i64, i64, st.integers(0, 99))
def test_fallocate_is_read(offset: int, length: int, mode: int) -> None:
    wrapped = offset % (1 << 64), length % (1 << 64)
    message, _ = request(fakes.FALLOCATE_IN.pack(5, *wrapped, mode, 0))
    assert wire.unpack_fallocate(message) == (offset, length, mode)


def test_open_and_create_are_read() -> None:
    message, _ = request(fakes.OPEN_IN.pack(os.O_RDWR, 0))
    assert wire.unpack_open(message) == (os.O_RDWR, 0)
    message, size = request(fakes.CREATE_IN.pack(os.O_EXCL, 0o100640, 0o22, 0) + b"f\0")
    assert wire.unpack_create(message) == (os.O_EXCL, 0o100640)
    assert wire.name_at(message, wire.CREATE_SIZE, size) == b"f"


@given(
    st.binary(min_size=1, max_size=255)
    .map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
    .filter(lambda name: name not in wire.DOTS)
)
def test_a_name_is_read_as_it_is(name: bytes) -> None:
    message, size = request(name + b"\0")
    assert wire.only_name(message, size) == name
    message, size = request(fakes.GETXATTR_IN.pack(9, 0) + name + b"\0")
    assert wire.getxattr_name(message, size) == name
    message, size = request(name + b"\0")
    assert wire.looked_up(message, size) == name


@pytest.mark.parametrize("name", [b".", b"..", b"a/b", b"/", b"../a", b"a/"])
def test_a_name_that_leads_elsewhere_is_refused(name: bytes) -> None:
    message, size = request(name + b"\0")
    with fakes.refused(errno.EINVAL):
        wire.only_name(message, size)
    if name in wire.DOTS:
        assert wire.looked_up(message, size) == name
    else:
        with fakes.refused(errno.EINVAL):
            wire.looked_up(message, size)


def test_both_names_of_a_rename_are_read() -> None:
    message, size = request(b"\x07" + bytes(7) + b"old\0new\0")
    assert wire.rename_names(message, size, with_flags=False) == (7, 0, b"old", b"new")
    message, size = request(fakes.RENAME2_IN.pack(7, 2, 0) + b"old\0new\0")
    assert wire.rename_names(message, size, with_flags=True) == (7, 2, b"old", b"new")


@given(
    st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, 99)), max_size=9)
)
def test_batch_forget_is_read(pairs: list[tuple[int, int]]) -> None:
    body = fakes.BATCH_FORGET_IN.pack(len(pairs), 0)
    message, size = request(body + b"".join(fakes.FORGET_ONE.pack(*p) for p in pairs))
    assert wire.forgets(message, size) == pairs


def _rename(message: bytearray, size: int) -> object:
    return wire.rename_names(message, size, with_flags=False)


def _rename2(message: bytearray, size: int) -> object:
    return wire.rename_names(message, size, with_flags=True)


def _readdir(message: bytearray, size: int) -> object:
    return wire.largest_reply(Op.READDIR, message, size)


def _listxattr(message: bytearray, size: int) -> object:
    return wire.largest_reply(Op.LISTXATTR, message, size)


def _clamp(message: bytearray, size: int) -> None:
    wire.clamp_readdir(message, size, 1)


@pytest.mark.parametrize(
    ("read", "body"),
    [
        pytest.param(wire.only_name, b"", id="no name"),
        pytest.param(wire.only_name, b"\0", id="empty name"),
        pytest.param(wire.only_name, b"name", id="name without end"),
        pytest.param(wire.getxattr_name, bytes(8), id="xattr without name"),
        pytest.param(_rename, bytes(8) + b"one\0", id="one name of two"),
        pytest.param(_rename, bytes(8) + b"one\0two", id="second without end"),
        pytest.param(_rename2, bytes(15), id="half a rename2"),
        pytest.param(wire.forgets, bytes(7), id="half a count"),
        pytest.param(
            wire.forgets, fakes.BATCH_FORGET_IN.pack(1, 0) + bytes(15), id="half a pair"
        ),
        pytest.param(
            wire.forgets, fakes.BATCH_FORGET_IN.pack(0xFFFFFFFF, 0), id="count lies"
        ),
        pytest.param(_readdir, bytes(19), id="half a readdir"),
        pytest.param(_listxattr, bytes(3), id="half a listxattr"),
        pytest.param(_clamp, bytes(19), id="half a readdir to clamp"),
        pytest.param(handshake.parse_init, bytes(15), id="half an init"),
    ],
)
def test_a_message_that_is_too_short_is_reported(
    read: Callable[[bytearray, int], object], body: bytes
) -> None:
    """Even if the buffer has more data, left from an earlier request."""
    message, size = request(body)
    with pytest.raises(wire.Truncated):
        read(message, size)


# --- how much a reply can be ------------------------------------------------------


def test_a_readdir_asks_for_no_more_than_there_is_room_for() -> None:
    message, size = request(fakes.read_in(1 << 20))
    wire.clamp_readdir(message, size, 4096)
    assert wire.largest_reply(Op.READDIR, message, size) == 16 + 4096
    wire.clamp_readdir(message, size, 8192)
    assert wire.largest_reply(Op.READDIRPLUS, message, size) == 16 + 4096


@pytest.mark.parametrize(
    ("op", "asked", "least"),
    [
        (Op.GETXATTR, 65536, 16 + 65536),
        # A question for the size: fuse_getxattr_out.
        (Op.GETXATTR, 0, 16 + 8),
        (Op.LISTXATTR, 100, 16 + 100),
        # The longest target of a link; an entry.
        (Op.READLINK, 0, 16 + 4095),
        (Op.MKDIR, 0, 16 + 128),
    ],
)
def test_the_largest_reply_fits(op: Op, asked: int, least: int) -> None:
    message, size = request(fakes.GETXATTR_IN.pack(asked, 0) + b"x\0")
    assert wire.largest_reply(op, message, size) >= least


# --- replies ----------------------------------------------------------------------


def test_the_header_of_a_reply() -> None:
    assert fakes.OUT_HEADER.unpack(wire.pack_reply(16, -22, 6)) == (16, -22, 6)
    assert wire.unpack_out_header(fakes.OUT_HEADER.pack(16, -22, 6)) == (16, -22, 6)


def test_an_entry_has_all_of_stat() -> None:
    found = os.stat("/dev/null")
    packed = wire.pack_entry(wire.Entry(9, 3, found, 5, 4))
    assert fakes.ENTRY_OUT.unpack_from(packed) == (9, 3, 5, 4, 0, 0)
    attr = fakes.Attr(*fakes.ATTR.unpack_from(packed, fakes.ENTRY_OUT.size))
    times = [found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns]
    assert attr[:3] == (9, found.st_size, found.st_blocks)
    assert attr[3:6] == tuple(time // 10**9 for time in times)
    assert attr[6:9] == tuple(time % 10**9 for time in times)
    assert (attr.mode, attr.nlink) == (found.st_mode, found.st_nlink)
    assert (attr.uid, attr.gid) == (found.st_uid, found.st_gid)
    assert (attr.rdev, attr.blksize) == (os.makedev(1, 3), found.st_blksize)
    assert attr.flags == 0
    assert stat.S_ISCHR(attr.mode)


# --- INIT -------------------------------------------------------------------------

WANTED = {
    "ATOMIC_O_TRUNC": 3,
    "BIG_WRITES": 5,
    "DO_READDIRPLUS": 13,
    "PARALLEL_DIROPS": 18,
    "HANDLE_KILLPRIV_V2": 28,
    "INIT_EXT": 30,
    "PASSTHROUGH": 37,
    "NO_EXPORT_SUPPORT": 38,
    "ALLOW_IDMAP": 40,
}


def _negotiate(minor: int, flags: int) -> tuple[tuple[int, ...], handshake.Init]:
    init = handshake.parse_init(*request(fakes.init_in(minor, flags)))
    reply = handshake.pack_init(init)
    return fakes.INIT_OUT.unpack(reply), init


def test_all_that_is_wanted_is_taken_and_nothing_else() -> None:
    fields, init = _negotiate(45, fakes.EVERY_FLAG)
    taken = fields[3] | fields[10] << 32
    assert taken == sum(1 << bit for bit in WANTED.values())
    assert init.passthrough
    # max_stack_depth, without which the kernel takes no backing file.
    assert fields[11] == 1


def test_file_handles_are_offered_or_refused() -> None:
    init = handshake.parse_init(*request(fakes.init_in()))
    reply = handshake.pack_init(init, handles=True)
    fields = fakes.INIT_OUT.unpack(reply)
    wanted = WANTED | {"EXPORT_SUPPORT": 4}
    del wanted["NO_EXPORT_SUPPORT"]
    assert fields[3] | fields[10] << 32 == sum(1 << bit for bit in wanted.values())


@pytest.mark.parametrize("bit", WANTED.values(), ids=WANTED.keys())
def test_a_flag_that_the_kernel_does_not_offer_is_not_used(bit: int) -> None:
    fields, _ = _negotiate(45, fakes.EVERY_FLAG & ~(1 << bit))
    assert not (fields[3] | fields[10] << 32) & (1 << bit)


def test_flags2_means_nothing_without_init_ext() -> None:
    """An older kernel has other things there."""
    _, init = _negotiate(31, fakes.EVERY_FLAG & ~fakes.FUSE_INIT_EXT)
    assert not init.passthrough


@pytest.mark.parametrize(("offered", "agreed"), [(31, 31), (40, 40), (45, 40)])
def test_the_lower_minor_is_agreed_on(offered: int, agreed: int) -> None:
    fields, _ = _negotiate(offered, 0)
    assert fields[:2] == (7, agreed)


def test_pyfuse3_is_offered_readdirplus_only() -> None:
    message, size = request(fakes.init_in())
    relayed = handshake.init_for_relay(message, size)
    assert len(relayed) == size
    assert fakes.INIT_IN.unpack_from(relayed, HEADER)[3] == 1 << 13
