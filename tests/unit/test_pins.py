"""Pins of frames, on the running kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import threading
import time
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Final

import pytest

from inaccfs import mmcalls, uring
from inaccfs.shim import pins, releasing
from inaccfs.shim.buffers import Buffers, Piece
from inaccfs.shim.pins import Buffer, LockPins, NoPins, RingPins
from inaccfs.syscalls import CAP_IPC_LOCK
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.shim.pins import Pins

PAGE: Final = 4096
MIB: Final = 1 << 20


_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def without(capability: int) -> Iterator[None]:
    """Take a capability from this thread during a with block, by capset(2)."""
    # struct __user_cap_header_struct, version 3, and two __user_cap_data_struct.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert _libc.capget(header, data) == 0
    effective = data[0]
    data[0] = effective & ~(1 << capability)
    assert _libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = effective
        assert _libc.capset(header, data) == 0


@contextmanager
def locked_memory(limit: int) -> Iterator[None]:
    """RLIMIT_MEMLOCK is *limit* bytes, and no capability lifts it."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, before[1]))
    try:
        with without(CAP_IPC_LOCK):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


class Memory:
    """A mapped file without holes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("pins")
        os.ftruncate(self.fd, size)
        self.address = mmcalls.mmap(self.fd, 0, size)
        mmcalls.populate(self.address, size)

    def buffers(self, size: int) -> list[Buffer]:
        return [
            Buffer(self.address + at, size, self.fd, at)
            for at in range(0, self.size, size)
        ]

    def close(self) -> None:
        mmcalls.munmap(self.address, self.size)
        os.close(self.fd)


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(2 * MIB)
    yield made
    made.close()


@pytest.fixture
def ring() -> Iterator[RingPins]:
    try:
        made = RingPins()
    except OSError as exc:
        pytest.skip(f"no io_uring: {exc.strerror}")
    yield made
    made.close()


@pytest.fixture(params=["ring", "lock", "none"])
def any_pins(request: pytest.FixtureRequest) -> Iterator[Pins]:
    if request.param == "ring":
        yield request.getfixturevalue("ring")
        return
    made = NoPins("a test") if request.param == "none" else LockPins("a test")
    yield made
    made.close()


def pinned() -> int:
    """How many bytes this process has pinned for io_uring: VmPin."""
    return _status("VmPin")


def locked() -> int:
    """How many bytes of this process's mappings are locked: VmLck."""
    return _status("VmLck")


def maps() -> int:
    """The number of mappings of these tests' files."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        return sum("/memfd:pins" in line for line in lines)


def _status(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        (found,) = [line for line in lines if line.startswith(name + ":")]
    return int(found.split()[1]) * 1024


# --- the ring ---------------------------------------------------------------------


def test_buffers_of_a_ring_are_pinned_until_released(
    ring: RingPins, memory: Memory
) -> None:
    before = pinned()
    tokens = ring.hold(memory.buffers(256 * 1024))
    assert pinned() - before == memory.size
    held = [token for token in tokens if token is not None]
    assert len(set(held)) == 8
    ring.release(held[2:4])
    assert pinned() - before == memory.size - 512 * 1024
    ring.release(held[:2] + held[4:])
    assert pinned() == before
    assert ring.refusal == ""


def test_pages_stay_pinned_when_they_are_no_longer_mapped(ring: RingPins) -> None:
    memory = Memory(MIB)
    before = pinned()
    (token,) = ring.hold(memory.buffers(MIB))
    memory.close()
    assert pinned() - before == MIB
    assert token is not None
    ring.release([token])
    assert pinned() == before


def test_slots_are_taken_again_lowest_first(ring: RingPins, memory: Memory) -> None:
    assert ring.hold(memory.buffers(256 * 1024)) == list(range(8))
    ring.release([5, 2])
    ring.release([1])
    assert ring.hold(memory.buffers(512 * 1024)) == [1, 2, 5, 8]
    ring.release([1, 2, 5, 8, 0, 3, 4, 6, 7])


def test_a_full_ring_is_followed_by_another(ring: RingPins, memory: Memory) -> None:
    before = pinned()
    pages = memory.buffers(PAGE)
    wanted = pages * (uring.SLOTS // len(pages)) + pages[:3]
    tokens = ring.hold(wanted)
    assert tokens == list(range(len(wanted)))
    assert len(ring._rings) == 2
    assert pinned() - before == len(wanted) * PAGE
    ring.release(range(len(wanted)))
    assert pinned() == before


def test_nothing_is_pinned_where_nothing_is_mapped(
    ring: RingPins, memory: Memory
) -> None:
    before = pinned()
    nowhere = Memory(MIB)
    unmapped = nowhere.buffers(MIB)
    nowhere.close()
    with refused(errno.EFAULT):
        ring.hold([*memory.buffers(MIB), *unmapped])
    assert pinned() == before
    # The slots are free again.
    assert ring.hold(memory.buffers(MIB)) == [0, 1]
    ring.release([0, 1])


def test_past_the_limit_of_locked_memory_the_rest_is_not_pinned(memory: Memory) -> None:
    before = pinned()
    with locked_memory(4 * MIB):
        made = pins.choose()
        if not isinstance(made, RingPins):
            pytest.skip(f"no io_uring: {made.description}")
        tokens = [made.hold(memory.buffers(2 * MIB))[0] for _ in range(4)]
        held = [token for token in tokens if token is not None]
        # The limit is per user: another process may have used some of it.
        assert 0 < len(held) <= 2
        assert tokens == [*held, *[None] * (4 - len(held))]
        assert made.refusal == os.strerror(errno.ENOMEM)
        made.release(held[:1])
        # Of several the first are pinned.
        tokens = made.hold(memory.buffers(MIB) * 3)
        count = sum(token is not None for token in tokens)
        assert 2 <= count <= 4
        # The refused buffers have kept no slot.
        assert {*held[1:], *tokens[:count]} == set(range(len(held) - 1 + count))
        made.release([*held[1:], *[token for token in tokens if token is not None]])
        assert pinned() == before
    made.close()


@pytest.mark.parametrize("any_pins", ["ring", "lock"], indirect=True)
def test_a_release_that_the_kernel_refuses_is_tried_again(
    any_pins: Pins,
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A release never raises, and no memory stays pinned for ever."""
    monkeypatch.setattr(releasing, "_TRY_AGAIN_SECONDS", 0.01)
    held = pinned if isinstance(any_pins, RingPins) else locked
    before = held()
    tokens = any_pins.hold(memory.buffers(256 * 1024))
    assert held() == before + memory.size
    tried = threading.Semaphore(0)

    def no_memory(*_: object) -> int:
        tried.release()
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(uring, "update_buffers", no_memory)
        patch.setattr(mmcalls, "munmap", no_memory)
        for token in tokens:
            assert token is not None
            any_pins.release([token])
        for _ in range(len(tokens) + 2):
            assert tried.acquire(timeout=60)
        assert held() == before + memory.size
    deadline = time.monotonic() + 60
    while held() != before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert caplog.text.count("pages stay in use for now") == 1
    # The slots are free again.
    assert None not in any_pins.hold(memory.buffers(MIB))


def test_slots_that_the_kernel_has_not_emptied_are_not_free(
    ring: RingPins, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may stop in the middle, and returns how many it has done."""
    before = pinned()
    tokens = [
        token for token in ring.hold(memory.buffers(MIB // 2)) if token is not None
    ]
    really_update = uring.update_buffers

    def only_two(ring: int, slot: int, buffers: list[tuple[int, int]]) -> int:
        return really_update(ring, slot, buffers[:2])

    monkeypatch.setattr(uring, "update_buffers", only_two)
    ring.release(tokens[:3])
    assert pinned() == before + MIB // 2
    ring.release(tokens[3:])
    assert pinned() == before
    again = ring.hold(memory.buffers(MIB // 2))
    assert again == tokens
    ring.release(tokens)
    assert pinned() == before


def test_memory_that_cannot_be_unmapped_is_unmapped_later(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping that stays would keep its file's memory allocated."""
    monkeypatch.setattr(releasing, "_TRY_AGAIN_SECONDS", 0.01)
    before = maps()
    left = 3
    really_unmap = mmcalls.munmap

    def munmap(address: int, length: int) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        really_unmap(address, length)

    monkeypatch.setattr(mmcalls, "munmap", munmap)
    buffers = Buffers(NoPins("a test"), PAGE, MIB)
    piece = Piece(0, 1, 0, 1, [], pinned=False)
    with buffers.mapped(memory.fd, [piece]):
        assert maps() == before + 1
    deadline = time.monotonic() + 60
    while maps() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert left < 0


def test_pins_that_wait_to_be_released_end_with_the_ring(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    try:
        made = RingPins()
    except OSError as exc:
        pytest.skip(f"no io_uring: {exc.strerror}")
    held = made.hold(memory.buffers(MIB))
    monkeypatch.setattr(uring, "update_buffers", no_memory)
    made.release([token for token in held if token is not None])
    made.close()
    assert not [one for one in threading.enumerate() if isinstance(one, Timer)]


# --- the others -------------------------------------------------------------------


def test_without_a_ring_memory_is_locked(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_permitted() -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(uring, "setup", not_permitted)
    before = locked()
    made = pins.choose()
    assert made.description == "mlock (io_uring: Operation not permitted)"
    assert not made.stays
    tokens = made.hold(memory.buffers(MIB))
    assert locked() - before == 2 * MIB
    made.release(filter(None, tokens[:1]))
    assert locked() - before == MIB
    made.close()
    assert locked() == before


def test_with_the_limit_used_up_nothing_is_pinned(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_ring() -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(uring, "setup", no_ring)
    with locked_memory(0):
        made = pins.choose()
    description = (
        "none (io_uring: Function not implemented; mlock: Operation not permitted)"
    )
    assert made.description == description
    assert made.hold(memory.buffers(MIB)) == [None, None]


def test_memory_that_cannot_be_locked_is_not_pinned(memory: Memory) -> None:
    made = LockPins("a test")
    before, mappings = locked(), maps()
    with locked_memory(before + MIB):
        tokens = made.hold(memory.buffers(MIB))
    assert tokens[0] is not None
    assert tokens[1] is None
    assert made.refusal
    assert maps() == mappings + 1
    made.close()
    assert (locked(), maps()) == (before, mappings)


def test_locked_mappings_leave_room_for_others(memory: Memory) -> None:
    made = LockPins("a test", most=3)
    tokens = made.hold(memory.buffers(512 * 1024))
    assert [token is None for token in tokens] == [False, False, False, True]
    made.release(filter(None, tokens[:1]))
    assert made.hold(memory.buffers(2 * MIB)) != [None]
    made.close()


def test_nothing_is_left_open(any_pins: Pins, memory: Memory) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    tokens = any_pins.hold(memory.buffers(MIB))
    any_pins.release([token for token in tokens if token is not None])
    assert any_pins.hold([]) == []
    any_pins.release([])
    assert len(os.listdir("/proc/self/fd")) == fds
