"""Private faults and invalidations of the simulated KVM, in each order."""

from __future__ import annotations

import errno
import itertools
import threading
from typing import TYPE_CHECKING

import pytest

from inaccfs.errnos import EHWPOISON
from inaccfs.kvm import VM, MemoryFaultExit, invalidation
from inaccfs.kvm.invalidation import Invalidation
from inaccfs.semantics import V8, V8AsPosted
from tests.unit.kvm_guests import (
    BRACKETED,
    MIB,
    PAGE,
    PATIENCE,
    Once,
    add_slot,
    guest,
    shim,
    to_shared,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import ThreadPoolExecutor

    from inaccfs.kvm.shim import ShimRun
    from inaccfs.semantics import Semantics

# --- one fault ------------------------------------------------------------------------


def test_a_fault_maps_the_page_and_keeps_no_reference() -> None:
    """Patch 7/8: the reference is put right after mapping."""
    with guest() as made:
        made.vm.create_vcpu().read(5 * PAGE, 1)
        assert made.vm.spte(5) == (made.file.frames[5], 1)
        assert made.file.references == 0
        assert list(made.vm.sptes()) == [(5, made.vm.spte(5))]


def test_frames_that_are_apart_are_put_in_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each put-pfn would be a message of its own, and a pre-fault has hundreds."""
    with guest() as made:
        backing = made.vm.slots[0].backing
        assert backing is not None
        calls: list[list[tuple[int, int]]] = []
        really_put = backing.file.put_pfns

        def put_pfns(runs: Sequence[ShimRun], *, wait: bool = True) -> None:
            calls.append([(run.pfn, run.count) for run in runs])
            really_put(runs, wait=wait)

        frames = backing.get(8, 2)
        made.file.fetch(20)
        frames += [*backing.get(4, 1), *backing.get(5, 1)]
        pfns = sorted(each.pfn for each in frames)
        monkeypatch.setattr(backing.file, "put_pfns", put_pfns)
        backing.put(frames)
        assert calls == [[(pfns[0], 2), (pfns[1], 2)]]
        assert made.file.references == 0


def test_indexing() -> None:
    """guest_memfd_conversions_test, "indexing": the offset into the file counts."""
    with shim() as made, VM(made) as vm:
        file = made.memfd()
        add_slot(vm, file, gpa=16 * MIB, size=8 * PAGE, private_offset=3 * PAGE)
        vm.create_vcpu().write(16 * MIB + 2 * PAGE, b"x")
        assert list(file.frames) == [5]


def test_past_the_end_of_the_file_is_an_exit_with_its_errno() -> None:
    """As mainline; in v8 each error of get-pfn is an endless retry."""
    with shim() as made, VM(made) as vm:
        add_slot(vm, made.memfd(4 * PAGE), size=8 * PAGE)
        with pytest.raises(MemoryFaultExit) as caught:
            vm.create_vcpu().read(4 * PAGE, 1)
        assert caught.value.errno == errno.EINVAL
        assert isinstance(caught.value.__cause__, OSError)
        assert (caught.value.gpa, caught.value.size) == (4 * PAGE, PAGE)


def test_a_huge_page_that_reaches_out_of_the_file_is_not_read_there() -> None:
    with shim() as made, VM(made) as vm:
        file = made.memfd(4 * PAGE)
        # As on a tmpfs with huge=always; simulated folios end where the file ends.
        file.order = 9
        add_slot(vm, file, size=2 * MIB)
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"x")
        assert vm.stats.mapped == (0, 1, 0)
        with pytest.raises(MemoryFaultExit):
            vcpu.read(4 * PAGE - 1, 2)


def test_a_poisoned_page_is_an_exit() -> None:
    """Mainline: KVM_RUN fails with EHWPOISON."""
    with guest(semantics=BRACKETED) as made:
        vcpu = made.vm.create_vcpu()
        vcpu.read(0, 1)
        made.file.poison(0)
        assert made.vm.spte(0) is None
        with pytest.raises(MemoryFaultExit) as caught:
            vcpu.read(0, 1)
        assert caught.value.errno == EHWPOISON


def test_the_daemons_end_is_no_exit() -> None:
    with guest() as made:
        made.file.fails.append(ConnectionResetError("gone"))
        with pytest.raises(ConnectionResetError):
            made.vm.create_vcpu().read(0, 1)


# --- faults and invalidations ---------------------------------------------------------


@pytest.mark.parametrize("point", ["fault:begin", "fault:before_install"])
@pytest.mark.parametrize("semantics", [V8(), BRACKETED], ids=["v8", "bracketed"])
def test_a_punch_while_a_fault_is_under_way_makes_it_retry(
    point: str, semantics: Semantics
) -> None:
    """Patch 4/8. Otherwise the fault would map the page that was removed."""
    hook = Once(point)
    with guest(hooks=hook, semantics=semantics) as made:
        hook.act = lambda: made.file.punch(5, 6)
        made.vm.create_vcpu().write(5 * PAGE, b"new")
        assert made.vm.stats.retries == 1
        assert made.vm.spte(5) == (made.file.frames[5], 1)
        assert made.vm.stale_sptes() == []
        assert made.file.references == 0


def test_a_fault_waits_for_the_end_of_an_invalidation(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in the range cannot map before that; one outside of the range can."""
    # It must be woken, and not just try again after a while.
    monkeypatch.setattr(invalidation, "_PATIENCE", 10 * PATIENCE)
    asked, waits = itertools.count(1), threading.Event()
    covers = Invalidation.covers

    def watched(state: Invalidation, start: int, end: int) -> bool:
        # The fault asks first whether to retry and then, with mmu_lock, whether to
        # wait.
        if next(asked) == 2:
            waits.set()
        return covers(state, start, end)

    with guest(semantics=BRACKETED) as made:
        inside, outside = made.vm.create_vcpu(), made.vm.create_vcpu()
        with made.file.punching(5, 6):
            outside.read(6 * PAGE, 1)
            assert made.vm.spte(6) is not None
            monkeypatch.setattr(Invalidation, "covers", watched)
            access = pool.submit(inside.read, 5 * PAGE, 1)
            assert waits.wait(PATIENCE)
            assert made.vm.spte(5) is None
            assert made.vm.stats.in_progress == 1
        assert access.result(PATIENCE) == b"\0"
        assert made.vm.stats.in_progress == 0


def test_a_punch_elsewhere_while_a_fault_is_under_way_is_a_spurious_retry() -> None:
    hook = Once("fault:before_install")
    with guest(hooks=hook) as made:
        hook.act = lambda: made.file.punch(100, 101)
        made.vm.create_vcpu().read(0, 1)
        assert made.vm.stats.retries == 1


def test_an_invalidation_outside_the_slot_does_not_affect_it() -> None:
    """The underflow of patch 8/8 would zap the whole guest."""
    hook = Once("invalidate:begin")
    with shim() as made, VM(made, hooks=hook) as vm:
        file = made.memfd()
        add_slot(vm, file, size=4 * PAGE, private_offset=100 * PAGE)
        vm.create_vcpu().write(0, b"x")
        file.punch(0, 10)
        file.punch(104, 110)
        assert vm.spte(0) is not None
        assert (hook.seen[-1][0], vm.stats.invalidations) == ("access", 0)


@pytest.mark.parametrize("semantics", [V8(), V8AsPosted()], ids=["pages", "bytes"])
def test_the_unit_is_asked_for(semantics: Semantics) -> None:
    with guest(semantics=semantics) as made:
        made.vm.pre_fault_memory(0, MIB)
        made.file.punch(10, 20)
        zapped = [gfn for gfn in range(30) if made.vm.spte(gfn) is None]
        assert zapped == list(range(10, 20))


def test_both_aliases_of_a_page_are_zapped() -> None:
    """QEMU's SMRAM: two slots over the same pages of a file."""
    with guest() as made:
        add_slot(made.vm, made.file, slot=1, gpa=MIB, size=8 * PAGE)
        vcpu = made.vm.create_vcpu()
        vcpu.write(0, b"both")
        assert vcpu.read(MIB, 4) == b"both"
        assert made.vm.spte(256) == made.vm.spte(0)
        made.file.punch(0, 1)
        assert (made.vm.spte(0), made.vm.spte(256)) == (None, None)


def test_a_part_of_a_huge_page_goes_and_the_rest_is_faulted_in_again() -> None:
    with guest(2 * MIB, order=9) as made:
        vcpu = made.vm.create_vcpu()
        vcpu.write(0, b"kept")
        assert made.vm.stats.mapped == (0, 1, 0)
        made.file.punch(5, 6)
        assert made.vm.spte(0) is None
        assert vcpu.read(0, 4) == b"kept"
        assert made.vm.stats.mapped == (1, 0, 0)


def test_a_hook_that_raises_does_not_keep_the_zap_from_happening() -> None:
    def hook(point: str, start: int, end: int) -> None:
        if point == "invalidate:begin":
            raise RuntimeError("a bug in a test")

    with guest(hooks=hook) as made:
        made.vm.create_vcpu().read(0, 1)
        made.file.punch(0, 1)
        assert made.vm.spte(0) is None
        # In the client's thread no event can arrive before that.
        with pytest.raises(RuntimeError):
            made.vm.set_user_memory_region(0, 0, 0)


# --- pre-faulting ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "mapped"), [(0, (1024, 0, 0)), (4, (1024, 0, 0)), (9, (0, 2, 0))]
)
def test_pre_faulting_maps_all_without_a_fault(
    order: int, mapped: tuple[int, ...]
) -> None:
    with guest(4 * MIB, order) as made:
        made.vm.pre_fault_memory(0, 4 * MIB)
        vcpu = made.vm.create_vcpu()
        vcpu.write(0, bytes(4 * MIB))
        stats = made.vm.stats
        assert (stats.faults, stats.prefaulted, stats.mapped) == (0, 1024, mapped)
        assert made.file.references == 0
        expected = [made.file.frames[gfn] for gfn in range(1024)]
        found = [made.vm.spte(gfn) for gfn in range(1024)]
        assert [spte.pfn for spte in found if spte] == expected


def test_pre_faulting_skips_shared_and_mapped_pages() -> None:
    with guest() as made:
        to_shared(made.vm)(0, 4 * PAGE)
        made.vm.create_vcpu().read(4 * PAGE, 1)
        made.vm.pre_fault_memory(0, 8 * PAGE)
        stats = made.vm.stats
        assert (stats.spurious, stats.mapped, stats.installed[0]) == (1, (4, 0, 0), 4)


def test_pre_faulting_retries_smaller_and_smaller() -> None:
    hook = Once("fault:before_install")
    with guest(hooks=hook) as made:

        def again() -> None:
            made.file.punch(0, 1)
            if len(hook.seen) < 20:
                hook.act = again

        hook.act = again
        made.vm.pre_fault_memory(0, 64 * PAGE)
        assert made.vm.stats.retries > 1
        assert made.vm.stale_sptes() == []
        assert made.vm.stats.mapped == (64, 0, 0)


def test_pre_faulting_where_there_is_no_private_memory_is_enoent() -> None:
    """As in KVM_PRE_FAULT_MEMORY; the pages before that are mapped."""
    with guest(MIB) as made:
        with pytest.raises(FileNotFoundError):
            made.vm.pre_fault_memory(MIB - PAGE, 2 * PAGE)
        assert made.vm.stats.mapped == (1, 0, 0)


def test_pre_faulting_over_a_stale_mapping_replaces_it() -> None:
    with guest() as made:
        made.vm.pre_fault_memory(0, 8 * PAGE)
        made.file.remove(0, 8)
        # Otherwise it would get the same frames.
        made.shim.memfd().fetch(0)
        assert len(made.vm.stale_sptes()) == 8
        made.vm.pre_fault_memory(0, 8 * PAGE)
        assert made.vm.stale_sptes() == []
