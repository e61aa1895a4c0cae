"""The calls that v8's file refuses: it has fallocate and release only.

The errnos are those of a file without the other operations (section 0 of our notes on
the history), except where FUSE answers itself; `pread` and `lseek` differ with the
seal.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.mount import raw, support
from tests.mount.support import ENVIRONMENT, PAGE, allocated, opened, outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse

PROT_NONE = 0
F_ADD_SEALS = 1033
F_GET_SEALS = 1034
FS_IOC_GETFLAGS = 0x80086601
FICLONE = 0x40049409


@pytest.fixture
def file(mount: Mount) -> Iterator[Path]:
    """A file of four pages, two of them allocated; the same after the test."""
    path = mount.path / "file"
    run("truncate", "-s", 4 * PAGE, path)
    run("fallocate", "-l", 2 * PAGE, path)
    yield path
    assert os.stat(path).st_size == 4 * PAGE
    assert allocated(path) == 2 * PAGE


def refused(mount: Mount) -> tuple[str, ...]:
    """The errno of a positioned access: ESPIPE unless the file is sealed."""
    return ("EINVAL",) if mount.status().sealed else ("EINVAL", "ESPIPE")


def test_reading_is_refused(mount: Mount, file: Path) -> None:
    page = bytearray(PAGE)
    with opened(file, os.O_RDONLY) as fd:
        assert outcome(os.read, fd, PAGE) == "EINVAL"
        assert outcome(os.read, fd, 1) == "EINVAL"
        assert outcome(os.readv, fd, [page]) == "EINVAL"
        assert outcome(os.pread, fd, PAGE, 0) in refused(mount)
        assert outcome(os.preadv, fd, [page], 0) in refused(mount)
        # In a hole, and past the end.
        assert outcome(os.pread, fd, PAGE, 3 * PAGE) in refused(mount)
        assert outcome(os.pread, fd, PAGE, 64 * PAGE) in refused(mount)
    assert page == bytes(PAGE)


def test_writing_is_refused(mount: Mount, file: Path) -> None:
    page = bytes(PAGE)
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_SYNC):
        with opened(file, flags) as fd:
            assert outcome(os.write, fd, page) == "EINVAL"
            assert outcome(os.write, fd, b"x") == "EINVAL"
            assert outcome(os.writev, fd, [page]) == "EINVAL"
            assert outcome(os.pwrite, fd, page, PAGE) in refused(mount)
            assert outcome(os.pwritev, fd, [page], 64 * PAGE) in refused(mount)


def test_appending_is_refused_and_grows_nothing(mount: Mount, file: Path) -> None:
    with opened(file, os.O_WRONLY | os.O_APPEND) as fd:
        assert outcome(os.write, fd, bytes(PAGE)) == "EINVAL"


def test_an_empty_file_is_refused_the_same(mount: Mount) -> None:
    with opened(mount.path / "empty", os.O_RDWR | os.O_CREAT) as fd:
        assert outcome(os.read, fd, 1) == "EINVAL"
        assert outcome(os.write, fd, b"x") == "EINVAL"
        assert os.fstat(fd).st_size == 0
        assert allocated(fd) == 0


def test_splice_and_sendfile_are_refused(mount: Mount, file: Path) -> None:
    reader, writer = os.pipe()
    near, far = socket.socketpair()
    with near, far, opened(file) as fd:
        try:
            refusals = ("EINVAL", "ESPIPE")
            assert outcome(os.splice, fd, writer, PAGE) in refusals
            assert outcome(os.splice, fd, writer, PAGE, 0) in refusals
            assert outcome(os.sendfile, near.fileno(), fd, 0, PAGE) in refusals
            assert outcome(os.sendfile, writer, fd, None, PAGE) in refusals
            os.write(writer, bytes(PAGE))
            assert outcome(os.splice, reader, fd, PAGE) in refusals
            with opened("/dev/zero") as zeros:
                assert outcome(os.sendfile, fd, zeros, None, PAGE) in refusals
        finally:
            os.close(reader)
            os.close(writer)


def test_copy_file_range_is_refused(mount: Mount, file: Path, memory: Path) -> None:
    with (
        opened(file) as source,
        opened(mount.path / "to", os.O_CREAT | os.O_RDWR) as to,
    ):
        assert outcome(os.copy_file_range, source, to, PAGE) == "EINVAL"
        assert outcome(os.copy_file_range, source, to, PAGE, 0, 0) in refused(mount)
        assert os.fstat(to).st_size == 0
        with opened(memory / "plain", os.O_CREAT | os.O_RDWR) as plain:
            os.ftruncate(plain, PAGE)
            assert outcome(os.copy_file_range, source, plain, PAGE) != "ok"
            assert outcome(os.copy_file_range, plain, to, PAGE) != "ok"
        assert outcome(fcntl.ioctl, to, FICLONE, source) != "ok"
        assert os.fstat(to).st_size == 0


def test_aio_is_refused(mount: Mount, file: Path) -> None:
    with opened(file) as fd:
        try:
            assert outcome(raw.aio, fd, raw.AIO_PREAD) in ("EINVAL", "ESPIPE")
        except NotImplementedError as exc:
            pytest.skip(f"no AIO numbers for {exc}")
        assert outcome(raw.aio, fd, raw.AIO_PWRITE) in ("EINVAL", "ESPIPE")


def test_io_uring_is_refused(mount: Mount, file: Path) -> None:
    if not raw.has_io_uring():
        pytest.skip("the kernel allows no io_uring")
    with opened(file) as fd:
        for opcode in (
            raw.IORING_READ,
            raw.IORING_WRITE,
            raw.IORING_READV,
            raw.IORING_WRITEV,
        ):
            assert outcome(raw.io_uring, fd, opcode) in ("EINVAL", "ESPIPE")


def test_no_mapping_can_be_made(mount: Mount, file: Path) -> None:
    if not mount.status().sealed:
        pytest.skip(f"mmap: {mount.status().mmap}")
    read_write = mmap.PROT_READ | mmap.PROT_WRITE
    for flags in (os.O_RDONLY, os.O_RDWR):
        with opened(file, flags) as fd:
            for protection in (PROT_NONE, mmap.PROT_READ, mmap.PROT_WRITE, read_write):
                for share in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
                    wanted = "ENODEV"
                    if (
                        flags == os.O_RDONLY
                        and share == mmap.MAP_SHARED
                        and protection & mmap.PROT_WRITE
                    ):
                        # The kernel checks this before it calls the file.
                        wanted = "EACCES"
                    result = outcome(mmap.mmap, fd, PAGE, flags=share, prot=protection)
                    assert result == wanted, (flags, protection, share)


def test_a_file_that_create_has_opened_is_sealed_like_any(mount: Mount) -> None:
    """CREATE and TMPFILE have replies of their own that say how a file is opened."""
    if not mount.status().sealed:
        pytest.skip(f"mmap: {mount.status().mmap}")
    for name, flags in (("file", os.O_CREAT | os.O_EXCL), ("", os.O_TMPFILE)):
        with opened(mount.path / name, flags | os.O_RDWR) as fd:
            os.ftruncate(fd, PAGE)
            for share in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
                assert outcome(mmap.mmap, fd, PAGE, flags=share) == "ENODEV"
            assert outcome(os.read, fd, 1) == "EINVAL"
            assert outcome(os.write, fd, b"x") == "EINVAL"


def test_a_file_cannot_be_executed(mount: Mount, file: Path) -> None:
    os.chmod(file, 0o755)
    with pytest.raises(PermissionError) as refusal:
        subprocess.run([file], check=False)
    assert refusal.value.errno == errno.EACCES


def test_a_file_takes_no_seals(mount: Mount, file: Path) -> None:
    """v8 refuses MFD_INACCESSIBLE together with MFD_ALLOW_SEALING."""
    with opened(file) as fd:
        assert outcome(fcntl.fcntl, fd, F_ADD_SEALS, 1) == "EINVAL"
        assert outcome(fcntl.fcntl, fd, F_GET_SEALS) == "EINVAL"


def test_ioctl_has_no_commands(mount: Mount, file: Path) -> None:
    argument = bytearray(struct.calcsize("l"))
    with opened(file) as fd:
        for command in (0x5401, FS_IOC_GETFLAGS, 0xAE00):
            assert outcome(fcntl.ioctl, fd, command, argument) == "ENOTTY"


def test_no_call_shows_where_pages_are_allocated(mount: Mount, file: Path) -> None:
    with opened(file) as fd:
        assert outcome(os.lseek, fd, 0, os.SEEK_DATA) == "ESPIPE"
        assert outcome(os.lseek, fd, 0, os.SEEK_HOLE) == "ESPIPE"


def test_o_direct_is_refused(mount: Mount, file: Path) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR):
        assert outcome(os.open, file, flags | os.O_DIRECT) == "EINVAL"


def test_o_direct_makes_no_file_and_sets_no_size(mount: Mount, file: Path) -> None:
    new = mount.path / "new"
    with opened(mount.path / "keep", os.O_CREAT | os.O_RDWR) as fd:
        raw.fallocate(fd, raw.KEEP_SIZE, 0, PAGE)

    flags = os.O_RDWR | os.O_CREAT | os.O_DIRECT
    assert outcome(os.open, new, flags) == "EINVAL"
    assert outcome(os.open, mount.path, os.O_RDWR | os.O_TMPFILE | os.O_DIRECT) == (
        "EINVAL"
    )
    result = outcome(os.open, mount.path / "keep", os.O_RDWR | os.O_TRUNC | os.O_DIRECT)
    assert result == "EINVAL"
    assert allocated(mount.path / "keep") == PAGE
    assert support.used(mount.path) == 3 * PAGE


def test_an_open_file_does_not_become_o_direct(mount: Mount, file: Path) -> None:
    with opened(file) as fd:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl_outcome = outcome(fcntl.fcntl, fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        # The kernel may accept the flag; the outcomes must stay the same.
        assert fcntl_outcome in ("ok", "EINVAL")
        assert outcome(os.read, fd, PAGE) == "EINVAL"
        assert outcome(os.write, fd, bytes(PAGE)) == "EINVAL"


def test_sync_and_locks_are_not_refused(mount: Mount, file: Path) -> None:
    """fallocate(1) ends with fsync(2) and would report a failure."""
    with opened(file) as fd:
        os.fsync(fd)
        os.fdatasync(fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_EX)
    run("sync", file)


def test_tools_that_read_or_write_say_why_they_cannot(mount: Mount, file: Path) -> None:
    new = mount.path / "new"
    for command in (
        f"cat {file}",
        f"head -c 1 {file}",
        f"sha256sum {file}",
        f"cmp {file} /dev/zero",
        f"dd if={file} of=/dev/null",
        f"dd if=/dev/zero of={file} count=1 conv=notrunc",
        f"cp {file} /dev/null",
        f"cp /etc/passwd {new}",
        f"echo x >> {file}",
        f"echo x > {new}",
    ):
        ran = run("sh", "-c", command, status=None)
        assert ran.returncode != 0, command
        reasons = (os.strerror(errno.EINVAL), "I/O error", os.strerror(errno.ESPIPE))
        assert any(reason in ran.stderr for reason in reasons), ran.stderr


def test_xfs_io_sees_the_same(mount: Mount, file: Path) -> None:
    if shutil.which("xfs_io", path=ENVIRONMENT["PATH"]) is None:
        pytest.skip("no xfs_io")

    def xfs_io(*commands: str) -> str:
        words = [word for command in commands for word in ("-c", command)]
        ran = run("xfs_io", *words, file, status=None)
        return ran.stdout + ran.stderr

    assert "Invalid argument" in xfs_io("pwrite 0 4k")
    assert "No such device" in xfs_io("mmap -rw 0 4k") or not mount.status().sealed
    assert "Invalid argument" in xfs_io("fpunch 1 4k")
    assert xfs_io("fpunch 4k 4k", "falloc 4k 4k") == ""
    assert "not supported" in xfs_io("fzero 0 4k")
    assert "not supported" in xfs_io("fcollapse 0 4k")


def test_fio_is_refused(mount: Mount, file: Path, scratch: Path) -> None:
    if shutil.which("fio", path=ENVIRONMENT["PATH"]) is None:
        pytest.skip("no fio")
    for engine in ("psync", "mmap"):
        ran = run(
            "fio",
            "--name=test",
            f"--filename={file}",
            f"--ioengine={engine}",
            "--rw=read",
            "--bs=4k",
            "--size=16k",
            "--thread",
            "--allow_file_create=0",
            status=None,
            cwd=scratch,
        )
        assert ran.returncode != 0, engine
