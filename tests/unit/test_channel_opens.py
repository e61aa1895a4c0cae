"""Open files over the channel: create, open, seal, tmpfile and release."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from inaccfs.fuse import wire
from inaccfs.fuse.seal import Seal
from inaccfs.fuse.wire import Op
from tests.unit.channel_calls import PAGE
from tests.unit.fakes import CREATE_IN, LSEEK_IN, SealFactory, World, read_in, serving

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing


async def test_create_opens_the_new_file(world: World, tree: Path) -> None:
    reply = await world.kernel.create(b"f", mode=0o640)
    nodeid = reply.entry().nodeid
    assert (tree / "f").stat().st_ino == nodeid
    assert stat.S_IMODE((tree / "f").stat().st_mode) == 0o640
    fh, _, backing_id = reply.opened()
    assert fh == nodeid
    assert backing_id == 0
    assert world.namespace.inodes[nodeid].opens == 1


async def test_release_closes_the_last_open_only(world: World) -> None:
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    await world.kernel.open(nodeid, os.O_RDONLY)
    node = world.namespace.inodes[nodeid]
    assert (await world.kernel.release(nodeid)).error == 0
    assert node.file is not None
    assert (await world.kernel.release(nodeid)).error == 0
    assert node.file is None
    assert node.fd == -1


async def test_create_of_a_name_that_is_there(world: World, tree: Path) -> None:
    """O_EXCL: EEXIST; else ESTALE, and the kernel looks again."""
    (tree / "f").touch()
    exclusive = await world.kernel.create(b"f", os.O_RDWR | os.O_EXCL)
    assert exclusive.error == errno.EEXIST
    assert (await world.kernel.create(b"f")).error == errno.ESTALE


@pytest.mark.parametrize(
    ("backing_id", "flags"),
    [
        pytest.param(
            0,
            wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH | wire.FOPEN_NONSEEKABLE,
            id="unsealed",
        ),
        pytest.param(
            7,
            wire.FOPEN_DIRECT_IO | wire.FOPEN_NOFLUSH | wire.FOPEN_PASSTHROUGH,
            id="sealed",
        ),
    ],
)
async def test_each_kind_of_open_carries_the_seal(
    backing: Backing, backing_id: int, flags: int
) -> None:
    async with serving(backing, make_seal=SealFactory(backing_id)) as world:
        made = await world.kernel.create(b"f")
        nodeid = made.entry().nodeid
        body = CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0)
        unnamed = await world.kernel.call(Op.TMPFILE, 1, body)
        for reply in (made, await world.kernel.open(nodeid, os.O_RDONLY), unnamed):
            assert reply.opened()[1:] == (flags, backing_id)


class Unwilling(Seal):
    """The kernel refuses every backing file."""

    def __init__(self) -> None:
        super().__init__("shared", 7)
        self.unwilling = True
        self.ended = 0

    def backing_id(self, ino: int, fd: int) -> int:
        if self.unwilling:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().backing_id(ino, fd)

    def closed(self, ino: int) -> None:
        self.ended += 1
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


async def test_an_open_that_cannot_be_sealed_leaves_nothing(
    backing: Backing,
) -> None:
    seal = Unwilling()
    async with serving(backing, make_seal=lambda _: seal) as world:
        known = set(world.namespace.inodes.nodes)
        assert (await world.kernel.create(b"f")).error == errno.ENOMEM
        body = CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0)
        assert (await world.kernel.call(Op.TMPFILE, 1, body)).error == errno.ENOMEM
        assert set(world.namespace.inodes.nodes) == known
        # Nor the name: the kernel would go on to deny it.
        assert os.listdir(backing.root) == []
        assert (await world.kernel.lookup(b"f")).entry().nodeid == 0
        seal.unwilling = False
        nodeid = (await world.kernel.create(b"f")).entry().nodeid
        assert (await world.kernel.call(Op.FLUSH, nodeid)).error == 0
        world.namespace.opens.release(world.namespace.inodes[nodeid])
        seal.unwilling = True
        assert (await world.kernel.open(nodeid, os.O_RDWR)).error == errno.ENOMEM
        assert world.namespace.inodes[nodeid].opens == 0


async def test_a_release_that_goes_wrong_is_one_all_the_same(backing: Backing) -> None:
    seal = Unwilling()
    seal.unwilling = False
    async with serving(backing, make_seal=lambda _: seal) as world:
        nodeid = (await world.kernel.create(b"f")).entry().nodeid
        assert world.namespace.inodes[nodeid].opens == 1
        assert (await world.kernel.release(nodeid)).error == errno.ENOENT
        assert (seal.ended, world.namespace.inodes[nodeid].opens) == (1, 0)


async def test_o_direct_is_refused_wherever_a_file_is_opened(world: World) -> None:
    """It is EINVAL, and leaves no name."""
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    direct = os.O_RDWR | os.O_DIRECT
    assert (await world.kernel.open(nodeid, direct)).error == errno.EINVAL
    body = CREATE_IN.pack(direct, 0o100600, 0, 0)
    assert (await world.kernel.call(Op.TMPFILE, 1, body)).error == errno.EINVAL
    assert (await world.kernel.create(b"new", direct)).error == errno.EINVAL
    assert (await world.kernel.lookup(b"new")).entry().nodeid == 0


async def test_o_trunc_is_a_size_change(world: World, tree: Path) -> None:
    """It is EPERM once the file has its size, and the open is not counted."""
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    truncating = os.O_RDWR | os.O_TRUNC
    assert (await world.kernel.open(nodeid, truncating)).error == 0
    os.truncate(tree / "f", PAGE)
    opens = world.namespace.inodes[nodeid].opens
    assert (await world.kernel.open(nodeid, truncating)).error == errno.EPERM
    assert world.namespace.inodes[nodeid].opens == opens
    assert (tree / "f").stat().st_size == PAGE


async def test_tmpfile_has_no_name_and_goes_with_its_last_use(
    world: World, tree: Path
) -> None:
    body = CREATE_IN.pack(os.O_RDWR, 0o100600, 0, 0)
    entry = (await world.kernel.call(Op.TMPFILE, 1, body)).entry()
    assert entry.attr.nlink == 0
    assert os.listdir(tree) == []
    assert (await world.kernel.fallocate(entry.nodeid, 0, 0, PAGE)).error == 0
    await world.kernel.release(entry.nodeid)
    await world.kernel.forget(entry.nodeid, 1)
    await world.kernel.call(Op.GETATTR)
    assert set(world.namespace.inodes.nodes) == {1}
    space = os.statvfs(tree)
    assert space.f_bfree == space.f_blocks


@pytest.mark.parametrize(
    ("op", "body", "error"),
    [
        (Op.READ, read_in(PAGE), errno.EINVAL),
        (Op.WRITE, read_in(4) + b"data", errno.EINVAL),
        (Op.COPY_FILE_RANGE, bytes(56), errno.EINVAL),
        (Op.COPY_FILE_RANGE_64, bytes(56), errno.EINVAL),
        (Op.LSEEK, LSEEK_IN.pack(0, 0, os.SEEK_DATA, 0), errno.ESPIPE),
        (Op.IOCTL, bytes(32), errno.ENOTTY),
        (Op.FLUSH, bytes(24), 0),
        (Op.FSYNC, bytes(16), 0),
        (37, b"", errno.ENOSYS),  # BMAP
        (40, b"", errno.ENOSYS),  # POLL
        (63, b"", errno.ENOSYS),
        (64, b"", errno.ENOSYS),
        (65535, b"", errno.ENOSYS),
        (0xFFFFFFFF, b"", errno.ENOSYS),
    ],
    ids=str,
)
async def test_operations_that_v8_files_lack_are_refused(
    world: World, op: int, body: bytes, error: int
) -> None:
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    assert (await world.kernel.call(op, nodeid, body)).error == error
