"""guest_memfd_conversions_test.c of the in-place series, as far as it applies here.

The host is a shared window of the file, and the guest its backing memory: what the
file decides is tested here. private_mem_kvm_exits is about KVM's exits, and belongs to
the tests of the simulated KVM.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from inaccfs.errors import BusError, PinnedError
from inaccfs.semantics import InPlaceNext, InPlaceV8, Semantics
from inaccfs.syscalls import PUNCH
from tests.unit.one_file import PAGE, OneFile, mine, one_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.inprocess.pages import SharedWindow

both = pytest.mark.parametrize("base", [InPlaceV8, InPlaceNext])


@dataclass
class World(OneFile):
    # The guest's memory.
    memory: int
    host: SharedWindow

    def to_private(self, page: int, count: int = 1) -> None:
        self.file.set_memory_attributes(page, count, True)

    def to_shared(self, page: int, count: int = 1) -> None:
        self.file.set_memory_attributes(page, count, False)

    def guest_reads(self, page: int) -> int:
        return os.pread(self.memory, 1, page * PAGE)[0]

    def guest_writes(self, page: int, value: int) -> None:
        os.pwrite(self.memory, bytes([value]), page * PAGE)

    def host_reads(self, page: int) -> int:
        return self.host.read(page * PAGE, 1)[0]

    def host_writes(self, page: int, value: int) -> None:
        self.host.write(page * PAGE, bytes([value]))

    def host_cannot_access(self, page: int) -> None:
        """ "TEST_EXPECT_SIGBUS": of a read and of a write."""
        for access in (self.host_reads, lambda page: self.host_writes(page, 99)):
            with pytest.raises(BusError) as caught:
                access(page)
            assert (caught.value.errno, caught.value.offset) == (errno.EFAULT, page)

    def is_shared(self, page: int, value: int) -> None:
        """ "test_shared": both sides see *value*, and what the other side writes."""
        assert (self.host_reads(page), self.guest_reads(page)) == (value, value)
        self.host_writes(page, value + 1)
        assert self.guest_reads(page) == value + 1
        self.guest_writes(page, value + 2)
        assert self.host_reads(page) == value + 2

    def is_private(self, page: int, value: int) -> None:
        """ "test_private": the guest sees its data, and the host gets SIGBUS."""
        self.host_cannot_access(page)
        assert self.guest_reads(page) == value
        self.guest_writes(page, value + 1)
        self.host_cannot_access(page)
        assert self.guest_reads(page) == value + 1


@contextmanager
def world(base: type[Semantics], pages: int = 1, **chosen: object) -> Iterator[World]:
    with one_file(mine(base, **chosen), pages) as it:
        memory = it.file.get_memory()
        it.file.bind(0, pages, lambda start, end: None)
        yield World(**vars(it), memory=memory, host=it.file.shared_window())
        os.close(memory)


@both
def test_init_private(base: type[Semantics]) -> None:
    with world(base) as it:
        it.is_private(0, 0)
        it.to_shared(0)
        # The host sees the guest's last write.
        it.is_shared(0, 1)
        it.to_private(0)
        it.is_private(0, 3)


@both
def test_init_shared(base: type[Semantics]) -> None:
    with world(base, initial="shared") as it:
        it.is_shared(0, 0)
        it.to_private(0)
        it.is_private(0, 2)
        it.to_shared(0)
        it.is_shared(0, 3)


@both
@pytest.mark.parametrize("page", range(4))
@pytest.mark.parametrize("initial", ["private", "shared"])
def test_indexing(base: type[Semantics], page: int, initial: str) -> None:
    """Convert one page of four: the others keep their state and their data."""
    with world(base, 4, initial=initial) as it:
        for each in range(4):
            it.guest_writes(each, 10 * each)
        convert = it.to_shared if initial == "private" else it.to_private
        back = it.to_private if initial == "private" else it.to_shared
        for change, changed in ((convert, True), (back, False)):
            change(page)
            for each in range(4):
                private = (initial == "private") is not (each == page and changed)
                if private:
                    it.host_cannot_access(each)
                else:
                    assert it.host_reads(each) == 10 * each
                assert it.guest_reads(each) == 10 * each


@both
def test_before_allocation_shared(base: type[Semantics]) -> None:
    with world(base, initial="shared") as it:
        it.to_private(0)
        assert os.fstat(it.fd).st_blocks == 0
        it.is_private(0, 0)
        it.to_shared(0)
        it.is_shared(0, 1)


@both
def test_before_allocation_private(base: type[Semantics]) -> None:
    with world(base) as it:
        it.to_shared(0)
        assert os.fstat(it.fd).st_blocks == 0
        it.is_shared(0, 0)
        it.to_private(0)
        it.is_private(0, 2)


@both
def test_unallocated_folios(base: type[Semantics]) -> None:
    """Some of eight pages have memory; the whole range is converted."""
    with world(base, 8, initial="shared") as it:
        it.host_writes(2, 5)
        it.host_writes(6, 7)
        it.to_private(0, 8)
        for page in range(8):
            it.host_cannot_access(page)
            assert it.guest_reads(page) == {2: 5, 6: 7}.get(page, 0)
        it.to_shared(0, 8)
        assert [it.host_reads(page) for page in range(8)] == [0, 0, 5, 0, 0, 0, 7, 0]


@both
def test_truncate(base: type[Semantics]) -> None:
    """A punch takes the content, and leaves the attribute."""
    with world(base, initial="shared") as it:
        it.host_writes(0, 5)
        it.mount.fallocate(it.fd, PUNCH, 0, PAGE)
        it.is_shared(0, 0)
        it.to_private(0)
        it.guest_writes(0, 6)
        it.mount.fallocate(it.fd, PUNCH, 0, PAGE)
        it.is_private(0, 0)


@both
def test_forked_accesses(base: type[Semantics]) -> None:
    """Every mapping loses the page and gets it back; here it is another client's."""
    with world(base, initial="shared") as it:
        child = it.mount.connect()
        window = child.file(it.fd).shared_window()
        window.write(0, b"child")
        it.to_private(0)
        it.host_cannot_access(0)
        with pytest.raises(BusError):
            window.read(0, 5)
        it.to_shared(0)
        assert window.read(0, 5) == b"child"
        child.close()


@both
@pytest.mark.parametrize("page", range(4))
def test_elevated_refcount(base: type[Semantics], page: int) -> None:
    with world(base, 4, initial="shared") as it:
        pinned = it.file.pin_pages(page)
        for start, count in ((0, 4), (page, 1)):
            with pytest.raises(PinnedError) as caught:
                it.to_private(start, count)
            assert caught.value.offset == page
        # Nothing has been converted: the host can still write to all of it.
        for each in range(4):
            it.host_writes(each, each)
        for each in range(4):
            if each != page:
                it.to_private(each)
        it.file.unpin_pages(pinned)
        # Some of them are private already.
        it.to_private(0, 4)
        for each in range(4):
            it.is_private(each, each)


@both
def test_private_mem_conversions(base: type[Semantics]) -> None:
    """The host gets SIGBUS, and not the data that it shared before."""
    with world(base, 2, initial="shared") as it:
        it.host_writes(0, 5)
        it.to_private(0, 2)
        it.guest_writes(0, 6)
        it.host_cannot_access(0)
        it.to_shared(0, 2)
        assert it.host_reads(0) == 6


def test_a_window_has_slices_and_says_what_it_has_not() -> None:
    with world(InPlaceV8, 2, initial="shared") as it:
        it.host[PAGE - 2 : PAGE + 2] = b"edge"
        assert it.host[PAGE - 2 : PAGE + 2] == b"edge"
        assert it.host[5:5] == b""
        with pytest.raises(ValueError, match="4 bytes do not fit into 3"):
            it.host[0:3] = b"edge"
        with pytest.raises(ValueError, match="no steps"):
            it.host[0:4:2]
        with pytest.raises(TypeError, match=r"window\[start:stop\]"):
            it.host[3:]
