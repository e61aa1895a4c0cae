"""The steps of a fault, and how the KVM uses its threads and its memory."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from inaccfs.kvm import VM, Vmm
from inaccfs.kvm.faultsteps import Get, Point, Put, Reach, Wait
from inaccfs.kvm.sync import THREADS
from tests.unit.kvm_guests import MIB, PAGE, add_slot, guest, shim

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from inaccfs.kvm.faultsteps import Step
    from inaccfs.kvm.memory import Place
    from inaccfs.kvm.sync import Condition, Lock
    from tests.unit.kvm_guests import Guest


def names(
    steps: Generator[Step, Any, object], meanwhile: dict[str, Callable[[], object]]
) -> list[str]:
    """Take all steps, with *meanwhile* before one; return their classes' names."""
    seen: list[str] = []
    try:
        step = next(steps)
        while True:
            seen.append(type(step).__name__)
            if (act := meanwhile.pop(seen[-1], None)) is not None:
                act()
            try:
                answer = step()
            except OSError as exc:
                step = steps.throw(exc)
            else:
                step = steps.send(answer)
    except StopIteration:
        return seen


def one_or_many(made: Guest, what: str) -> Generator[Step, Any, object]:
    faults = made.vm._faults
    return faults.fault(0) if what == "fault" else faults.populate(0, 4)


@pytest.mark.parametrize("what", ["fault", "populate"])
def test_the_steps_of_one_page_and_of_many_are_the_same(what: str) -> None:
    """Patch 7/8."""
    with guest() as made:
        steps = one_or_many(made, what)
        assert names(steps, {}) == ["Get", "Put", "Reach"]
        assert made.vm.spte(0) is not None
        assert made.vm.stats.retries == 0


@pytest.mark.parametrize("what", ["fault", "populate"])
def test_a_page_that_was_invalidated_is_put_and_the_end_awaited(what: str) -> None:
    """Between any two steps other threads may run."""
    with guest() as made:
        retried: list[object] = []

        def punch() -> None:
            made.file.punch(0, 1)
            retried.append(made.vm.spte(0))

        seen = names(one_or_many(made, what), {"Get": punch})
        again = ["Get", "Put", "Reach"] if what == "populate" else []
        assert seen == ["Get", "Put", "Wait", *again]
        assert made.vm.stats.retries == 1
        assert retried == [None]


def test_no_lock_is_taken_at_a_step() -> None:
    with guest() as made:
        for steps in (made.vm._faults.fault(0), made.vm._faults.populate(4, 8)):
            try:
                step = next(steps)
                while True:
                    # Otherwise it would wait for ever.
                    with made.vm._mmu.lock:
                        pass
                    step = steps.send(step())
            except StopIteration:
                pass
        assert made.vm.stats.in_progress == 0


def test_after_any_failure_past_get_pfn_the_reference_is_put() -> None:
    """The hook is a step, too, if there is one."""

    def hook(point: str, start: int, end: int) -> None:
        if point == "fault:before_install":
            raise OSError(errno.EIO, "a bug of a hook")

    with guest(hooks=hook) as made:
        with pytest.raises(OSError, match="a bug of a hook"):
            THREADS.drive(made.vm._faults.fault(0))
        assert made.file.references == 0
        (slot,) = made.vm.slots
        assert slot.users == 0


@pytest.mark.parametrize("what", ["fault", "populate"])
def test_a_locked_page_is_tried_again(what: str) -> None:
    """EAGAIN of v7's get-pfn: another vCPU has the page."""
    with guest() as made:
        made.file.fails.append(OSError(errno.EAGAIN, "locked"))
        seen = names(one_or_many(made, what), {})
        again = ["Get", "Put", "Reach"] if what == "populate" else []
        assert seen == ["Get", "Wait", *again]
        assert made.vm.stats.retries == 1


def test_every_step_is_of_a_kind_that_can_be_known() -> None:
    """From its kind a scheduler knows what the step accesses."""
    kinds: list[object] = []
    with guest(hooks=lambda *_: None) as made:
        steps = made.vm._faults.fault(3)
        step = next(steps)
        try:
            while True:
                kinds.append(step)
                step = steps.send(step())
        except StopIteration:
            pass
    begin, get, install, put, reach = kinds
    assert isinstance(begin, Point)
    assert isinstance(install, Point)
    assert (begin.name, install.name) == ("fault:begin", "fault:before_install")
    assert isinstance(get, Get)
    assert (get.pgoff, get.pages) == (3, 1)
    assert isinstance(put, Put)
    assert [each.pgoff for each in put.frames] == [3]
    assert isinstance(reach, Reach)
    assert reach.pgoff == 4
    assert not any(isinstance(each, Wait) for each in kinds)


# --- threads --------------------------------------------------------------------------


class Counting:
    """`THREADS`, and a count of the calls."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.driven = 0

    def lock(self, name: str) -> Lock:
        self.made.append(name)
        return THREADS.lock(name)

    def condition(self, lock: Lock) -> Condition:
        return THREADS.condition(lock)

    def drive(self, steps: Generator[Any, Any, Any]) -> Any:
        self.driven += 1
        return THREADS.drive(steps)


def test_every_lock_of_a_vm_is_made_by_its_sync() -> None:
    sync = Counting()
    with shim() as made, VM(made, sync=sync) as vm:
        add_slot(vm, made.memfd())
        vcpu = vm.create_vcpu()
        Vmm(vm)
        assert sorted(sync.made) == [
            *("guest_mode", "memory_lock", "mmu_lock", "slots_lock", "vmm_lock")
        ]
        vcpu.read(0, 1)
        vm.pre_fault_memory(0, MIB)
        assert sync.driven == 2


# --- memory ---------------------------------------------------------------------------


class FrameMemory:
    """The guest's bytes are the frame's; a punched frame keeps its last bytes."""

    def __init__(self) -> None:
        self.frames: dict[int, bytearray] = {}

    def _of(self, place: Place) -> tuple[bytearray, int]:
        return self.frames.setdefault(place.pfn, bytearray(PAGE)), place.gpa % PAGE

    def read(self, place: Place, size: int) -> bytes:
        frame, at = self._of(place)
        return bytes(frame[at : at + size])

    def write(self, place: Place, data: memoryview) -> None:
        frame, at = self._of(place)
        frame[at : at + len(data)] = data


def test_memory_may_be_that_of_frames() -> None:
    """As on hardware, a stale entry leads to the memory of the frame's new owner."""
    memory = FrameMemory()
    with shim() as made, VM(made, memory=memory) as vm, VM(made, memory=memory) as evil:
        victim, file = made.memfd(), made.memfd()
        add_slot(evil, file)
        add_slot(vm, victim)
        attacker = evil.create_vcpu()
        attacker.write(PAGE + 7, b"mine")
        file.remove(1, 2)
        vm.create_vcpu().write(5 * PAGE + 7, b"secret")
        assert attacker.read(PAGE + 7, 6) == b"secret"
        assert os.pread(victim.fd, 6, 5 * PAGE + 7) == bytes(6)


def test_memory_and_encryption_exclude_each_other() -> None:
    with shim() as made, pytest.raises(TypeError, match="not both"):
        VM(made, encryption=True, memory=FrameMemory())


# --- looking --------------------------------------------------------------------------


@pytest.mark.parametrize("private", [True, False])
def test_a_hook_is_called_where_slots_are_read_without_a_lock(*, private: bool) -> None:
    seen: list[tuple[str, int, int]] = []

    def hook(point: str, start: int, end: int) -> None:
        seen.append((point, start, end))

    with guest(hooks=hook, default_private=private) as made:
        vcpu = made.vm.create_vcpu()
        vcpu.read(3 * PAGE, 1, private=private)
        found = [(start, end) for point, start, end in seen if point == "looks_up"]
        # After the fault of a private page there is one more page walk.
        assert found == [(3, 4)] * (2 if private else 1)


@pytest.mark.parametrize("order", [0, 9])
def test_the_mappings_of_some_gfns_can_be_queried(order: int) -> None:
    with guest(4 * MIB, order) as made:
        made.vm.pre_fault_memory(0, 2 * MIB)
        some = made.vm.runs(5, 7)
        whole = made.vm.runs()
        pages = whole[0]._replace(gfn=5, pfn=whole[0].pfn + 5, pages=2)
        assert some == (whole if order else [pages])
        assert made.vm.runs(600, 700) == []
        made.file.remove(6, 7)
        first = made.vm.stale_sptes(6, 7)
        assert [each.gfn for each in first] == ([] if order else [6])
        assert made.vm.stale_sptes(600, 700) == []
