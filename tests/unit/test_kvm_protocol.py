"""A VM with another retry protocol than KVM's, and ends without a begin."""

from __future__ import annotations

import pytest

from inaccfs.kvm import VM
from inaccfs.kvm.invalidation import Invalidation
from tests.unit.kvm_guests import BRACKETED, MIB, PAGE, add_slot, guest, shim


class Careless(Invalidation):
    """Never retries, and allows a negative count."""

    __slots__ = ()

    def retry(self, seq: int, start: int, end: int) -> bool:
        return False

    def end(self) -> None:
        self.in_progress -= 1


def test_a_vm_goes_by_the_protocol_that_it_is_given() -> None:
    """KVM's protocol would retry the fault."""
    with shim() as made:
        file = made.memfd()

        def hook(point: str, start: int, end: int) -> None:
            if point == "fault:before_install":
                file.punch(3, 4)

        with VM(made, hooks=hook, invalidation=Careless()) as vm:
            add_slot(vm, file)
            vm.create_vcpu().read(3 * PAGE, 1)
            assert [stale.gfn for stale in vm.stale_sptes()] == [3]
            assert vm.stats.retries == 0


def test_an_end_without_its_begin_is_a_bug_of_the_shim() -> None:
    """In restrictedmem of v9 and v10 a slot can be created between begin and end."""
    with guest(semantics=BRACKETED) as made:
        with made.file.punching(0, 10):
            add_slot(made.vm, made.file, slot=1, gpa=MIB)
        with pytest.raises(AssertionError, match="without its begin"):
            made.vm.set_user_memory_region(1, 0, 0)
        assert made.vm.stats.in_progress == 0


def test_a_slot_with_an_end_too_many_can_be_deleted() -> None:
    with shim(BRACKETED) as made, VM(made, invalidation=Careless()) as vm:
        file = made.memfd()
        # Another VM has a notifier, because otherwise no events would be sent.
        with VM(made) as other:
            add_slot(other, file)
            with file.punching(0, 10):
                add_slot(vm, file)
        vm.set_user_memory_region(0, 0, 0)
        assert vm.stats.in_progress == -1
