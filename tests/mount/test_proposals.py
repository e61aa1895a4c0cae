"""The proposals on a real mount: conversions, freezes, write(2)."""

from __future__ import annotations

import errno
import json
import mmap
import os
from typing import TYPE_CHECKING

import pytest
import trio

import inaccfs
from inaccfs import syscalls
from inaccfs.client import aio
from inaccfs.errors import BusError, PinnedError
from tests.mount import raw, support
from tests.mount.support import PAGE, opened, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.fuse

SIZE = 32 * PAGE


def allocate(fd: int, offset: int, length: int) -> None:
    raw.fallocate(fd, raw.KEEP_SIZE, offset, length)


@pytest.fixture
def in_place() -> Iterator[inaccfs.Mount]:
    with support.mounted(semantics="in-place-v8") as mount:
        yield mount


def sized(mount: inaccfs.Mount, name: str = "guest") -> int:
    fd = os.open(mount.path / name, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, SIZE)
    return fd


def test_attributes_are_the_inodes_and_outlive_its_opens(
    in_place: inaccfs.Mount,
) -> None:
    """They stay as long as the file, under any name; a new file has its own."""
    os.close(sized(in_place))
    with inaccfs.connect(in_place.control) as client:
        client.file("/guest").set_memory_attributes(2, 3, False)
    (in_place.path / "guest").rename(in_place.path / "other")
    with inaccfs.connect(in_place.control) as client:
        rows = client.file("/other").query_memory_attributes()
        found = [(row.offset, row.count, row.private) for row in rows]
        assert found == [(0, 2, True), (2, 3, False), (5, 27, True)]
        (in_place.path / "other").unlink()
        os.close(sized(in_place, "other"))
        (row,) = client.file("/other").query_memory_attributes()
        assert (row.count, row.private) == (32, True)


def test_two_clients_a_window_and_a_notifier(in_place: inaccfs.Mount) -> None:
    events: list[tuple[str, int, int, str]] = []
    fd = sized(in_place)
    with (
        inaccfs.connect(in_place.control) as vm,
        inaccfs.connect(in_place.control) as vmm,
        vm.file(fd) as guest,
        vmm.file(fd) as host,
        guest.bind(
            0,
            32,
            invalidate_start=lambda *args: events.append(("start", *args)),
            invalidate_end=lambda *args: events.append(("end", *args)),
            with_kinds=True,
        ),
    ):
        host.set_memory_attributes(4, 8, False)
        assert events == [("start", 4, 12, "private"), ("end", 4, 12, "private")]
        window = host.shared_window()
        text = b"over the edge of a page" * 400
        window[5 * PAGE - 7 : 5 * PAGE - 7 + len(text)] = text
        assert window.read(5 * PAGE - 7, len(text)) == text
        with pytest.raises(BusError) as caught:
            window.read(12 * PAGE - 1, 2)
        assert caught.value.offset == 12
        frame = guest.get_pfn(6)
        assert frame.private is False
        with pytest.raises(PinnedError) as pinned:
            host.set_memory_attributes(0, 32, True)
        assert pinned.value.offset == 6
        guest.put_pfn(frame.pfn)
        host.set_memory_attributes(0, 32, True)
        assert guest.get_pfn(6).private is True
    os.close(fd)


def test_the_trio_face_has_it_all_too(in_place: inaccfs.Mount) -> None:
    fd = sized(in_place)

    async def main() -> None:
        async with (
            aio.connect(in_place.control) as client,
            await client.file(fd) as file,
        ):
            await file.set_memory_attributes(1, 1, False)
            window = file.shared_window()
            await window.write(PAGE, b"hello")
            assert await window.read(PAGE, 5) == b"hello"
            with pytest.raises(BusError):
                await window.read(0, 1)
            assert await file.populate(2, 4) == 4
            pins = await file.pin_pages(1)
            with pytest.raises(PinnedError):
                await file.set_memory_attributes(1, 1, True)
            await file.unpin_pages(pins)
            await file.set_memory_attributes(1, 1, True)
            (row,) = await file.query_memory_attributes()
            assert row.private
            with pytest.raises(OSError, match="no file is frozen"):
                await file.freeze()

    trio.run(main)
    os.close(fd)


def test_write_fills_whole_shared_pages() -> None:
    """write(2), pwrite(2) and lseek(2) work, and reads do not; page by page."""
    with support.mounted(semantics="write-v7") as mount:
        fd = sized(mount)
        with mmap.mmap(-1, 2 * SIZE) as memory, memoryview(memory) as view:
            memory[:SIZE] = bytes(range(256)) * (SIZE // 256)
            assert os.write(fd, view[:SIZE]) == SIZE
            # The position is past the end now.
            assert outcome(os.write, fd, view[:PAGE]) == "EINVAL"
            assert os.lseek(fd, PAGE, os.SEEK_SET) == PAGE
            assert os.write(fd, view[:PAGE]) == PAGE
            assert os.pwrite(fd, view[: 2 * PAGE], 2 * PAGE) == 2 * PAGE
            for offset, length in ((1, PAGE), (0, 1), (0, PAGE + 1), (SIZE, PAGE)):
                assert outcome(os.pwrite, fd, view[:length], offset) == "EINVAL"
            assert outcome(os.pread, fd, 1, 0) == "EINVAL"
            # A call ends early where its next part is refused.
            parts = os.pwrite(fd, view[:SIZE], SIZE - 16 * PAGE)
            assert parts == 16 * PAGE
        with mmap.mmap(fd, SIZE) as mapped:
            assert mapped[:256] == bytes(range(256))
        os.close(fd)


def test_a_frozen_file_refuses_fallocate_until_its_connection_ends() -> None:
    with support.mounted(semantics="live-update") as mount:
        fd = sized(mount)
        syscalls.fallocate(fd, 1, 0, PAGE)
        with inaccfs.connect(mount.control) as other:
            with inaccfs.connect(mount.control) as client:
                client.file(fd).freeze()
                for call in (raw.punch, allocate):
                    assert outcome(call, fd, 0, PAGE) == "EPERM"
                with pytest.raises(PermissionError):
                    other.file(fd).unfreeze()
                assert os.fstat(fd).st_blocks * 512 == PAGE
            support.ask_until(lambda: outcome(raw.punch, fd, 0, PAGE) == "ok")
            with pytest.raises(OSError, match="not frozen") as caught:
                other.file(fd).unfreeze()
            assert caught.value.errno == errno.EINVAL
        os.close(fd)


def test_files_of_huge_pages() -> None:
    huge = 2 << 20
    with (
        support.mounted(semantics="hugetlb-rfc", pfn_source="simulated") as mount,
        opened(mount.path / "guest", os.O_RDWR | os.O_CREAT) as fd,
    ):
        assert outcome(os.ftruncate, fd, PAGE) == "EINVAL"
        os.ftruncate(fd, 2 * huge)
        assert outcome(allocate, fd, 0, PAGE) == "EINVAL"
        assert outcome(allocate, fd, 0, huge) == "ok"
        assert outcome(raw.punch, fd, PAGE, huge) == "EINVAL"
        with inaccfs.connect(mount.control) as client:
            file = client.file(fd)
            with file.bind(0, 1024, lambda start, end: None):
                assert file.get_pfn(600).order == 9
                assert os.fstat(fd).st_blocks * 512 == 2 * huge
                assert outcome(raw.punch, fd, huge, huge) == "EAGAIN"
                file.set_memory_attributes(700, 1, False)
                assert file.get_pfn(601).order == 0


def test_many_ranges_come_in_pages_and_are_joined(in_place: inaccfs.Mount) -> None:
    pages = 2400
    with inaccfs.connect(in_place.control) as client:
        fd = client.memfd_create("guest", size=pages * PAGE)
        file = client.file(fd)
        for page in range(0, pages, 2):
            file.set_memory_attributes(page, 1, False)
        rows = file.query_memory_attributes()
        assert [row.offset for row in rows] == list(range(pages))
        assert [row.private for row in rows] == [False, True] * (pages // 2)
        os.close(fd)


def test_a_shell_has_the_commands_too(in_place: inaccfs.Mount) -> None:
    os.close(sized(in_place))
    words = ("qmp", in_place.path, "--compact")
    where = ("file=/guest", "offset=4", "count=2")
    support.cli(*words, "set-memory-attributes", *where, "private=false")
    out = support.cli(*words, "query-memory-attributes", "file=/guest").stdout
    rows = [(row["offset"], row["count"], row["private"]) for row in json.loads(out)]
    assert rows == [(0, 4, True), (4, 2, False), (6, 26, True)]
    refusal = support.complaint(*words, "populate", *where)
    assert "populate: EINVAL: page 4 is shared" in refusal
