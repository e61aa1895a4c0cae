"""Converting guest memory to shared and back: faults, and huge pages."""

from __future__ import annotations

import errno

import pytest

from inaccfs.kvm import MemoryFaultExit
from tests.unit.fakes import refused
from tests.unit.kvm_guests import MIB, PAGE, Once, guest, to_shared


@pytest.mark.parametrize(
    ("gpa", "size"),
    [(0, 0), (1, PAGE), (0, 100), (-PAGE, PAGE), ((1 << 64) - PAGE, 2 * PAGE)],
)
def test_attributes_are_of_whole_pages(gpa: int, size: int) -> None:
    """Patch 5/8."""
    with guest() as made:
        for call in (made.vm.pre_fault_memory, to_shared(made.vm)):
            with refused(errno.EINVAL):
                call(gpa, size)


def test_a_conversion_while_a_fault_is_under_way_makes_it_retry() -> None:
    """v8 stores and zaps without begin and end: the fault would map it as private."""
    hook = Once("fault:before_install")
    with guest(hooks=hook) as made:
        hook.act = lambda: to_shared(made.vm)(0, PAGE)
        with pytest.raises(MemoryFaultExit):
            made.vm.create_vcpu().read(0, 1)
        assert made.vm.spte(0) is None
        assert made.vm.stats.retries == 1


def test_a_conversion_splits_a_huge_page_and_does_not_touch_the_neighbours() -> None:
    """guest_memfd_conversions_test, "precision"."""
    with guest(2 * MIB, order=9) as made:
        vcpu = made.vm.create_vcpu()
        vcpu.write(4 * PAGE, b"neighbour")
        to_shared(made.vm)(5 * PAGE, PAGE)
        assert made.vm.spte(4) is None
        assert vcpu.read(4 * PAGE, 9) == b"neighbour"
        assert made.vm.stats.mapped == (1, 0, 0)
        made.vm.set_memory_attributes(5 * PAGE, PAGE, private=True)
        vcpu.read(5 * PAGE, 1)
        stats = made.vm.stats
        assert stats.mapped == (0, 1, 0)
        # The page that the huge one has replaced is counted, too.
        assert (stats.installed, stats.zapped) == ((1, 2, 0), (1, 1, 0))


def test_a_conversion_that_changes_nothing_zaps_nothing() -> None:
    """As in mainline."""
    with guest() as made:
        made.vm.create_vcpu().read(0, 1)
        made.vm.set_memory_attributes(0, MIB, private=True)
        assert (made.vm.stats.zaps, made.vm.stats.conversions) == (0, 0)
