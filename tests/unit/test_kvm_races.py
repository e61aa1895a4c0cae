"""What a punch, a vCPU or a slot that is deleted does to a fault that is under way."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

import pytest

from inaccfs.client import ConnectionLostError
from inaccfs.kvm import KVM_MEMORY_EXIT_FLAG_PRIVATE, MemoryFaultExit
from inaccfs.kvm.audit import StaleSpte
from inaccfs.semantics import V8
from tests.unit.kvm_guests import BRACKETED, MIB, PAGE, PATIENCE, Once, add_slot, guest

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from inaccfs.semantics.rules import MemoryFailure

# --- the race of v8 ------------------------------------------------------------------


def test_in_v8_a_guest_uses_a_removed_page() -> None:
    """Vlastimil Babka on v8 1/8: the callback comes after the hole is punched.

    Between the two, the mapping has a frame that no longer belongs to the file and may
    belong to any other file.
    """
    hook = Once("invalidate:begin")
    with guest(hooks=hook) as made:
        vcpu = made.vm.create_vcpu()
        vcpu.write(5 * PAGE, b"secret")
        old = made.file.frames[5]
        other = made.shim.memfd()

        def in_the_window() -> None:
            assert 5 not in made.file.frames
            assert other.fetch(0) == old, "it is somebody else's by now"
            assert made.vm.stale_sptes() == [StaleSpte(5, old, 1, None)]
            faults = made.vm.stats.faults
            vcpu.write(5 * PAGE, b"lost")
            assert made.vm.stats.faults == faults, "no fault has stopped it"

        hook.act = in_the_window
        made.file.punch(5, 6)
        assert hook.act is None
        assert made.vm.stale_sptes() == []
        vcpu.read(5 * PAGE, 1)
        assert made.vm.spte(5) != (old, 1)


def test_a_bracketed_order_has_no_such_window() -> None:
    """v9: invalidate_start comes before the hole is punched."""
    seen: list[object] = []
    hook = Once("invalidate:end")
    with guest(semantics=BRACKETED, hooks=hook) as made:
        vcpu = made.vm.create_vcpu()
        vcpu.write(5 * PAGE, b"secret")

        def after() -> None:
            assert 5 not in made.file.frames
            seen.append(made.vm.stale_sptes())

        hook.act = after
        with made.file.punching(5, 6):
            assert 5 in made.file.frames
            seen.append(made.vm.spte(5))
    assert seen == [None, []]


def test_punches_may_have_one_event_where_poison_has_a_start_and_an_end() -> None:

    class Mine(V8):
        memory_failure: ClassVar[MemoryFailure] = "invalidate"

    with guest(semantics=Mine()) as made:
        vcpu = made.vm.create_vcpu()
        vcpu.read(0, 2 * PAGE)
        made.file.punch(0, 1)
        made.file.poison(1)
        assert (made.vm.spte(0), made.vm.spte(1)) == (None, None)


@pytest.mark.parametrize("how", ["fault", "pre-fault"])
def test_no_huge_page_reaches_into_a_range_being_punched(how: str) -> None:
    """The fault is outside the range, so it need not retry, but it maps 4 KiB only."""
    with guest(4 * MIB, order=9, semantics=BRACKETED) as made:
        with made.file.punching(100, 101):
            if how == "fault":
                made.vm.create_vcpu().read(10 * PAGE, 1)
            else:
                made.vm.pre_fault_memory(10 * PAGE, PAGE)
        assert (made.vm.spte(100), made.vm.stats.mapped) == (None, (1, 0, 0))
        made.vm.create_vcpu().read(600 * PAGE, 1)
        assert made.vm.stats.mapped == (1, 1, 0)


def test_a_slot_whose_notifier_was_lost_is_not_used_any_more() -> None:
    """Mapped pages may be removed without an event."""
    with guest(semantics=BRACKETED) as made:
        vcpu = made.vm.create_vcpu()
        vcpu.write(0, b"x")
        # This invalidation has no end event either.
        with made.file.punching(3, 4):
            made.file.lost = True
            for gpa in (0, PAGE, 3 * PAGE):
                with pytest.raises(
                    ConnectionLostError, match=r"slot 0: .* disconnected"
                ):
                    vcpu.read(gpa, 1)
            with pytest.raises(ConnectionLostError):
                made.vm.pre_fault_memory(0, MIB)
        made.vm.set_user_memory_region(0, 0, 0)
        made.file.lost = False
        add_slot(made.vm, made.file)
        assert vcpu.read(3 * PAGE, 1) == b"\0"


def test_stale_pages_of_a_huge_mapping_are_found() -> None:
    with guest(4 * MIB, order=9) as made:
        made.vm.pre_fault_memory(0, 4 * MIB)
        first = made.file.frames[0]
        made.file.remove(0, 512)
        assert made.vm.stale_sptes() == [StaleSpte(0, first, 2, None)]
        assert made.shim.memfd(2 * MIB).fetch(0) == first
        now = made.file.fetch(3) - 3
        assert now != first
        assert made.vm.stale_sptes() == [StaleSpte(0, first, 2, now)]


def test_a_huge_mapping_without_any_page_is_found_between_others() -> None:
    """There are three in a row, of contiguous frames; the second has no pages left."""
    with guest(6 * MIB, order=9) as made:
        made.vm.pre_fault_memory(0, 6 * MIB)
        assert len(made.vm.runs()) == 1
        first = made.file.frames[0]
        made.file.remove(512, 1024)
        assert made.vm.stale_sptes() == [StaleSpte(512, first + 512, 2, None)]


# --- several at once ------------------------------------------------------------------


def test_two_vcpus_fault_one_page_in() -> None:
    hook = Once("fault:before_install")
    with guest(hooks=hook) as made:
        first, second = made.vm.create_vcpu(), made.vm.create_vcpu()
        hook.act = lambda: second.read(0, 1)
        first.read(0, 1)
        stats = made.vm.stats
        assert (stats.faults, stats.spurious, stats.retries) == (2, 1, 0)
        assert (stats.installed, stats.mapped) == ((1, 0, 0), (1, 0, 0))


def test_many_vcpus_and_punches_leave_nothing_wrong(pool: ThreadPoolExecutor) -> None:
    with guest() as made:
        pages = made.file.pages

        def touch(number: int) -> None:
            vcpu = made.vm.create_vcpu()
            for index in range(400):
                vcpu.write((index * (number + 3)) % pages * PAGE, b"x")

        def punch() -> None:
            for index in range(100):
                made.file.punch(index, index + 20)

        for done in [*(pool.submit(touch, n) for n in range(4)), pool.submit(punch)]:
            done.result(PATIENCE)
        stats = made.vm.stats
        assert made.vm.stale_sptes() == []
        assert stats.installed[0] - stats.zapped[0] == stats.mapped[0]
        assert stats.in_progress == 0


# --- slots that go --------------------------------------------------------------------


def test_a_slot_that_is_deleted_while_a_fault_is_under_way_is_waited_for(
    pool: ThreadPoolExecutor,
) -> None:
    """As synchronize_srcu() does; the file is not closed before the put."""
    hook = Once("fault:before_install")
    with guest(hooks=hook) as made:
        inside, go = threading.Event(), threading.Event()

        def wait_inside() -> None:
            inside.set()
            assert go.wait(PATIENCE)

        hook.act = wait_inside
        access = pool.submit(made.vm.create_vcpu().read, 0, 1)
        assert inside.wait(PATIENCE)
        deletion = pool.submit(made.vm.set_user_memory_region, 0, 0, 0)
        # When the slot can no longer be found, the deletion waits.
        with made.vm._mmu.lock:
            made.vm._mmu.changed.wait_for(lambda: not made.vm.slots, PATIENCE)
        assert not deletion.done()
        assert made.file.handles == 1
        go.set()
        deletion.result(PATIENCE)
        with pytest.raises(MemoryFaultExit) as caught:
            access.result(PATIENCE)
        assert caught.value.flags == KVM_MEMORY_EXIT_FLAG_PRIVATE
        assert (made.file.handles, made.vm.runs()) == (0, [])


def test_deleting_a_slot_ends_its_invalidation() -> None:
    with guest(semantics=BRACKETED) as made:
        add_slot(made.vm, made.file, slot=1, gpa=MIB)
        with made.file.punching(0, 10):
            assert made.vm.stats.in_progress == 2
            made.vm.set_user_memory_region(0, 0, 0)
            assert made.vm.stats.in_progress == 1
        assert made.vm.stats.in_progress == 0
