"""The simulated IOMMU: its four policies for changes, and what devices then access."""

from __future__ import annotations

import errno
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from inaccfs.errnos import EHWPOISON
from inaccfs.inprocess import Mount
from inaccfs.inprocess.client import call_at_once
from inaccfs.iommu import WAYS, Iommu
from inaccfs.iommu.iotable import IoTable
from inaccfs.kvm import KVM_MEM_PRIVATE, VM
from inaccfs.kvm.backing import BackingFile
from inaccfs.semantics import V8, V10, GuestMemfdShared, InPlaceNext, InPlaceV8
from tests.unit.fakes import refused
from tests.unit.one_file import PAGE, OneFile, one_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.inprocess.client import Due
    from inaccfs.iommu import Device, Learns
    from inaccfs.kvm.backing import Frames
    from inaccfs.semantics import Semantics

PAGES = 4
ONES = b"\xff" * 4


class Shared(InPlaceV8):
    """Conversion in place; pages begin as shared, for a VM and an IOMMU."""

    initial = "shared"
    exclusive = False


class Next(InPlaceNext):
    initial = "shared"
    exclusive = False


@dataclass
class Host(OneFile):
    iommu: Iommu
    device: Device


@contextmanager
def host(semantics: Semantics, learns: Learns, **options: Any) -> Iterator[Host]:
    with one_file(semantics, PAGES) as it:
        with Iommu(it.client, learns=learns, **options) as iommu:
            yield Host(**vars(it), iommu=iommu, device=iommu.create_device())
        file = it.mount.inode(it.fd)
        assert not len(file.notifiers)
        assert file.pages.memory is None or not file.pages.memory.references_count


@pytest.mark.parametrize("semantics", [V8(), V10(), Shared(), Next()])
@pytest.mark.parametrize("learns", WAYS)
def test_a_device_reads_what_it_has_written(
    semantics: Semantics, learns: Learns
) -> None:
    with host(semantics, learns) as it:
        if semantics.scope == "range" and learns in ("nothing", "pins"):
            pytest.skip("pages are bound by nobody")
        it.iommu.map_file(it.fd, 16 * PAGE, 2 * PAGE, offset=PAGE)
        it.device.write(17 * PAGE - 2, b"data")
        assert it.device.read(17 * PAGE - 2, 4) == b"data"
        stats = it.iommu.stats
        assert (stats.mapped, stats.accesses) == (2, 4)
        assert (stats.aborted, stats.uses_after_change) == (0, 0)
        assert it.iommu.unmap(16 * PAGE, 2 * PAGE) == 2 * PAGE
        assert it.device.read(16 * PAGE, 4) == ONES


def test_what_nothing_is_mapped_at_reads_as_ones() -> None:
    with host(V8(), "nothing") as it:
        it.device.write(0, b"lost")
        assert it.device.read(0, 4) == ONES
        assert it.iommu.stats.aborted == 2


def test_who_hears_nothing_uses_a_page_after_its_punch() -> None:
    with host(V8(), "nothing") as it:
        it.iommu.map_file(it.fd, 0, PAGES * PAGE)
        it.device.read(0, 4)
        it.punch(0, 1)
        it.device.read(0, 4)
        it.device.read(PAGE, 4)
        assert it.iommu.stats.uses_after_change == 1


def test_a_mapping_is_taken_away_and_comes_back() -> None:
    with host(V10(), "before and after") as it:
        it.iommu.map_file(it.fd, 0, PAGES * PAGE)
        it.device.write(0, b"data")
        it.punch(0, 1)
        assert it.device.read(0, 4) == ONES
        assert it.iommu.restore() == 1
        assert it.device.read(0, 4) == bytes(4)
        stats = it.iommu.stats
        assert (stats.unmapped, stats.restored, stats.uses_after_change) == (1, 1, 0)
        assert it.iommu.restore() == 0


def test_one_page_takes_the_whole_area_away() -> None:
    """Jason Gunthorpe: this hurts userspace, and the kernel is safe."""
    with host(V10(), "revoke") as it:
        area = it.iommu.map_file(it.fd, 0, 2 * PAGE)
        it.iommu.map_file(it.fd, 8 * PAGE, 2 * PAGE, offset=2 * PAGE)
        it.punch(0, 1)
        assert area.revoked
        assert it.device.read(PAGE, 4) == ONES
        assert it.device.read(8 * PAGE, 4) == bytes(4)
        assert it.iommu.restore() == 0
        assert it.iommu.stats.revoked == 1


def test_a_pinned_page_stays_shared() -> None:
    with host(Shared(), "pins") as it, VM(it.mount.connect()) as vm:
        vm.set_user_memory_region(
            0, 0, PAGES * PAGE, private_fd=it.fd, flags=KVM_MEM_PRIVATE
        )
        it.iommu.map_file(it.fd, 0, PAGE)
        with pytest.raises(BlockingIOError):
            it.file.set_memory_attributes(0, PAGES, True)
        it.iommu.unmap(0, PAGE)
        it.file.set_memory_attributes(0, PAGES, True)


def test_a_private_page_cannot_be_pinned() -> None:
    with host(Shared(), "pins") as it:
        it.file.set_memory_attributes(1, 1, True)
        with refused(errno.EFAULT, "page 1"):
            it.iommu.map_file(it.fd, 0, PAGES * PAGE)
        assert it.iommu.areas == ()


def test_a_refused_mapping_leaves_no_invalidation_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A start has come and its end has not, when a page turns out to be poisoned."""

    def without_ends(due: Due) -> None:
        if due.notice.event != "INVALIDATE_END":
            call_at_once(due)
            return
        # Its callback would come after the notifier has been unregistered.
        with due.notifier.file.client.mount.loop.outside():
            due.answer()

    def get(backing: BackingFile, pgoff: int, pages: int) -> list[Frames]:
        it.punch(0, 1)
        return get_frames(backing, pgoff, pages)

    def wait(*_: object) -> None:
        pytest.fail("an invalidation is in progress")

    get_frames = BackingFile.get
    with one_file(V10(), PAGES) as it:
        it.file.get_pfn(1)
        it.file.memory_failure(1)
        with Iommu(it.mount.connect(without_ends)) as iommu:
            with monkeypatch.context() as during:
                during.setattr(BackingFile, "get", get)
                with refused(EHWPOISON, "poison"):
                    iommu.map_file(it.fd, 0, 2 * PAGE)
            assert iommu.areas == ()
            monkeypatch.setattr(IoTable, "wait", wait)
            iommu.map_file(it.fd, 0, PAGE)
            assert iommu.create_device().read(0, 4) == bytes(4)


@pytest.mark.parametrize("semantics", [V8(), V10()])
def test_a_hook_that_raises_leaves_nothing_mapped(semantics: Semantics) -> None:
    def hook(name: str, start: int, end: int) -> None:
        if name == "event:begin":
            raise KeyError(start, end)

    with host(semantics, "before and after", hooks=hook) as it:
        it.iommu.map_file(it.fd, 0, 2 * PAGE)
        with suppress(KeyError):
            it.punch(0, 1)
        assert it.device.read(0, 4) == ONES
        assert it.device.read(PAGE, 4) == bytes(4)
        with suppress(KeyError):
            it.iommu.close()


@pytest.mark.parametrize("semantics", [Shared(), Next()])
def test_a_conversion_takes_away_what_was_of_the_other_kind(
    semantics: Semantics,
) -> None:
    with host(semantics, "before and after") as it:
        it.iommu.map_file(it.fd, 0, PAGES * PAGE)
        it.file.set_memory_attributes(1, 1, True)
        assert it.device.read(PAGE, 4) == ONES
        assert it.device.read(0, 4) == bytes(4)
        assert it.iommu.restore() == 1
        assert it.device.read(PAGE, 4) == bytes(4)
        assert it.iommu.stats.uses_after_change == 0


def test_who_hears_nothing_uses_a_page_after_its_conversion() -> None:
    with host(Shared(), "nothing") as it, VM(it.mount.connect()) as vm:
        vm.set_user_memory_region(
            0, 0, PAGES * PAGE, private_fd=it.fd, flags=KVM_MEM_PRIVATE
        )
        it.iommu.map_file(it.fd, 0, PAGE)
        it.file.set_memory_attributes(0, 1, True)
        it.device.write(0, b"data")
        assert it.iommu.stats.uses_after_change == 1


def test_where_a_page_has_one_user_there_is_no_second() -> None:
    with host(InPlaceV8(), "before and after") as it, VM(it.mount.connect()) as vm:
        vm.set_user_memory_region(
            0, 0, PAGES * PAGE, private_fd=it.fd, flags=KVM_MEM_PRIVATE
        )
        with pytest.raises(FileExistsError):
            it.iommu.map_file(it.fd, 0, PAGE)
        assert it.iommu.areas == ()


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ((0, 0, 0), errno.EINVAL),
        ((1, PAGE, 0), errno.EINVAL),
        ((0, PAGE + 1, 0), errno.EINVAL),
        ((0, PAGE, 3), errno.EINVAL),
        ((-PAGE, PAGE, 0), errno.EINVAL),
        ((0, PAGE, PAGES * PAGE), errno.EINVAL),
        ((9 * PAGE, PAGE, 0), errno.EEXIST),
    ],
)
def test_a_bad_range(arguments: tuple[int, int, int], number: int) -> None:
    with host(V10(), "before and after") as it:
        it.iommu.map_file(it.fd, 8 * PAGE, 2 * PAGE)
        with refused(number):
            it.iommu.map_file(it.fd, *arguments)
        assert len(it.iommu.areas) == 1


def test_an_area_is_unmapped_as_a_whole() -> None:
    with host(V10(), "before and after") as it:
        it.iommu.map_file(it.fd, 0, 2 * PAGE)
        with pytest.raises(OSError, match="as a whole"):
            it.iommu.unmap(0, PAGE)
        with pytest.raises(FileNotFoundError):
            it.iommu.unmap(8 * PAGE, PAGE)
        with pytest.raises(OSError, match="file of this mount"):
            it.iommu.map_file(0, 8 * PAGE, PAGE)


def test_there_are_four_ways() -> None:
    with (
        Mount(GuestMemfdShared()) as mount,
        pytest.raises(ValueError, match="give one"),
    ):
        Iommu(mount.connect(), learns="all")  # type: ignore[arg-type]
