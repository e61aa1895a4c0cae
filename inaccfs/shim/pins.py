"""What keeps frames where they are.

The seed makes the memory unmovable and unevictable. From outside of the kernel that is
a long-term pin, which a process gets by registering memory as buffers of an io_uring:
nothing is ever submitted there. mlock(2) comes second: it keeps pages in memory, but
compaction moves them.
"""

from __future__ import annotations

import errno
import os
from ctypes import addressof, create_string_buffer
from heapq import heappop, heappush
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from inaccfs import mmcalls, uring

if TYPE_CHECKING:
    from collections.abc import Iterable

# A process may have some 65,000 mappings (vm.max_map_count), and needs others too.
_MAX_MAPPINGS: Final = 16384


class Buffer(NamedTuple):
    """Mapped memory that shall stay. In bytes."""

    address: int
    length: int
    # Which part of which file it is: an fd, and where it begins there.
    fd: int
    offset: int


class Pins(Protocol):
    """One way to keep frames where they are. Safe to use from several threads."""

    @property
    def description(self) -> str:
        """For people: which way this is, and why none that is better."""

    @property
    def stays(self) -> bool:
        """Whether what is held cannot move."""

    @property
    def refusal(self) -> str:
        """What the kernel has said to the last `hold` that it refused, or nothing."""

    def hold(self, buffers: list[Buffer]) -> list[int | None]:
        """Hold memory until it is released: a token for each buffer.

        From the first on that the kernel refuses to hold they are None.

        Raises:
            OSError: there is no memory there, EFAULT; then nothing is held.
        """

    def release(self, tokens: Iterable[int]) -> None:
        """Let go at once what belongs to *tokens*."""

    def close(self) -> None:
        """Let go all, though maybe later."""


def choose() -> Pins:
    """The best that this kernel, and whoever set its limits, allows."""
    try:
        return RingPins()
    except OSError as exc:
        refused = f"io_uring: {exc.strerror}"
    try:
        return LockPins(refused)
    except OSError as exc:
        return NoPins(f"{refused}; mlock: {exc.strerror}")


class RingPins:
    """Long-term pins, one slot of a ring each; as many rings as that takes.

    They are taken off one by one: when a ring is closed its buffers go only later, in
    a thread of the kernel.
    """

    description: Final = "io_uring"
    stays: Final = True

    def __init__(self) -> None:
        """Make the first ring.

        Raises:
            OSError: io_uring is not there, or not allowed.
        """
        self.refusal = ""
        self._rings: list[int] = []
        # A token is a slot, counted through all rings. Of those that are free the
        # lowest are taken first, so that they follow each other and one call does.
        self._free: list[int] = []
        self._unused = 0
        self._lock: Final = Lock()
        self._add_ring()

    def _add_ring(self) -> None:
        ring, _ = uring.setup()
        try:
            uring.register_sparse(ring)
        except OSError:
            os.close(ring)
            raise
        self._rings.append(ring)

    def hold(self, buffers: list[Buffer]) -> list[int | None]:
        slots = self._take(len(buffers))
        held = 0
        try:
            while held < len(slots):
                ring, first = divmod(slots[held], uring.SLOTS)
                run = _run_length(slots, held)
                memory = [(one.address, one.length) for one in buffers[held:][:run]]
                held += uring.update_buffers(self._rings[ring], first, memory)
        except OSError as exc:
            if exc.errno == errno.EFAULT:
                self.release(slots)
                raise
            self.refusal = exc.strerror or str(exc)
            self._give_back(slots[held:])
        return [*slots[:held], *[None] * (len(buffers) - held)]

    def release(self, tokens: Iterable[int]) -> None:
        slots = sorted(tokens)
        at = 0
        while at < len(slots):
            ring, first = divmod(slots[at], uring.SLOTS)
            run = _run_length(slots, at)
            uring.update_buffers(self._rings[ring], first, [(0, 0)] * run)
            at += run
        self._give_back(slots)

    def close(self) -> None:
        for ring in self._rings:
            os.close(ring)
        self._rings.clear()

    def _take(self, count: int) -> list[int]:
        """Slots that are free, in order; fewer than *count* if there are no more."""
        with self._lock:
            taken = [heappop(self._free) for _ in range(min(count, len(self._free)))]
            while len(taken) < count:
                if self._unused == len(self._rings) * uring.SLOTS:
                    try:
                        self._add_ring()
                    except OSError as exc:
                        self.refusal = exc.strerror or str(exc)
                        break
                taken.append(self._unused)
                self._unused += 1
        return taken

    def _give_back(self, slots: list[int]) -> None:
        with self._lock:
            for slot in slots:
                heappush(self._free, slot)


def _run_length(slots: list[int], at: int) -> int:
    """How many of *slots* from *at* on follow each other in one ring."""
    first = slots[at]
    end = at + 1
    while (
        end < len(slots) and slots[end] == first + end - at and slots[end] % uring.SLOTS
    ):
        end += 1
    return end - at


class LockPins:
    """Mappings of their own for what is held, locked: for want of a ring."""

    stays: Final = False

    def __init__(self, reason: str) -> None:
        """*reason* is what was wrong with something better.

        Raises:
            OSError: mlock(2) is not allowed.
        """
        self.description: Final = f"mlock ({reason})"
        self.refusal = ""
        # By token: address and length.
        self._mappings: dict[int, tuple[int, int]] = {}
        self._last = 0
        self._lock: Final = Lock()
        probe = create_string_buffer(1)
        mmcalls.mlock(addressof(probe), 1)
        mmcalls.munlock(addressof(probe), 1)

    def hold(self, buffers: list[Buffer]) -> list[int | None]:
        tokens: list[int | None] = []
        for buffer in buffers:
            try:
                tokens.append(self._hold(buffer))
            except OSError as exc:
                self.refusal = exc.strerror or str(exc)
                break
        return [*tokens, *[None] * (len(buffers) - len(tokens))]

    def _hold(self, buffer: Buffer) -> int:
        if len(self._mappings) >= _MAX_MAPPINGS:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        # The caller's mapping is gone soon, and with it would go what it had locked.
        address = mmcalls.mmap(buffer.fd, buffer.offset, buffer.length)
        try:
            mmcalls.mlock(address, buffer.length)
        except OSError:
            mmcalls.munmap(address, buffer.length)
            raise
        with self._lock:
            self._last += 1
            self._mappings[self._last] = (address, buffer.length)
            return self._last

    def release(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            mmcalls.munmap(*self._mappings.pop(token))

    def close(self) -> None:
        self.release(list(self._mappings))


class NoPins:
    """Nothing is held."""

    stays: Final = False
    refusal: Final = ""

    def __init__(self, reason: str) -> None:
        """*reason* is what was wrong with everything else."""
        self.description: Final = f"none ({reason})"

    def hold(self, buffers: list[Buffer]) -> list[int | None]:
        return [None] * len(buffers)

    def release(self, tokens: Iterable[int]) -> None:
        pass

    def close(self) -> None:
        pass
