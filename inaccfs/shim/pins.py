"""Ways to keep pages in their frames.

The v8 patch makes the memory unmovable and unevictable. From userspace that takes a
long-term pin (FOLL_LONGTERM): a process gets one by registering memory as a buffer of
an io_uring, to which nothing is ever submitted. The second best way is mlock(2): it
keeps pages in memory, but compaction may move them to other frames.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from heapq import heappop, heappush
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from inaccfs import mmcalls, uring
from inaccfs.errnos import os_error
from inaccfs.shim.releasing import Releasing

if TYPE_CHECKING:
    from collections.abc import Iterable

# A process may have some 65,000 mappings (vm.max_map_count), and needs some for other
# purposes.
_MAX_MAPPINGS: Final = 16384


class Buffer(NamedTuple):
    """Mapped memory to be pinned. In bytes."""

    address: int
    length: int
    # The file that is mapped there, and the offset in it.
    fd: int
    offset: int


class Pins(Protocol):
    """One way to keep pages in their frames. Thread-safe."""

    @property
    def description(self) -> str:
        """For people: the way, and why a better one is not used."""

    @property
    def stays(self) -> bool:
        """Whether pinned pages cannot move."""

    @property
    def refusal(self) -> str:
        """The error of the last `hold` that the kernel refused; or ""."""

    def hold(self, buffers: list[Buffer]) -> list[int | None]:
        """Hold *buffers* until they are released; a token for each.

        If the kernel refuses one, the tokens of this and all later ones are None.

        Raises:
            OSError: EFAULT, nothing is mapped there. Then nothing is pinned.
        """

    def release(self, tokens: Iterable[int]) -> None:
        """Release the buffers of *tokens*, before this returns. Never raises.

        If the kernel refuses to release one, it is asked again every second.
        """

    def close(self) -> None:
        """Release all buffers. The kernel may do it later."""


def choose() -> Pins:
    """The best way that the kernel and its limits allow."""
    try:
        return RingPins()
    except OSError as exc:
        refused = f"io_uring: {exc.strerror}"
    try:
        return LockPins(refused)
    except OSError as exc:
        return NoPins(f"{refused}; mlock: {exc.strerror}")


class RingPins:
    """Long-term pins. Each takes a slot of a ring; there are as many rings as needed.

    Buffers are released slot by slot. Closing the ring would release them later, in a
    kernel thread.
    """

    description: Final = "io_uring"
    stays: Final = True

    def __init__(self) -> None:
        """Make the first ring.

        Raises:
            OSError: the kernel has no io_uring, or does not allow it.
        """
        self.refusal = ""
        self._rings: list[int] = []
        # A token is the number of a slot, counted through all rings. The lowest free
        # slots are taken first, as one call can fill consecutive slots.
        self._free: list[int] = []
        self._unused = 0
        self._lock: Final = Lock()
        self._releasing: Final = Releasing(self._empty)
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
        pinned = 0
        try:
            while pinned < len(slots):
                ring, first = divmod(slots[pinned], uring.SLOTS)
                run = _run_length(slots, pinned)
                memory = [(one.address, one.length) for one in buffers[pinned:][:run]]
                pinned += uring.update_buffers(self._rings[ring], first, memory)
        except OSError as exc:
            if exc.errno == errno.EFAULT:
                self.release(slots)
                raise
            self.refusal = exc.strerror or str(exc)
            self._give_back(slots[pinned:])
        return [*slots[:pinned], *[None] * (len(buffers) - pinned)]

    def release(self, tokens: Iterable[int]) -> None:
        self._releasing.release(sorted(tokens))

    def _empty(self, slots: list[int], at: int) -> int:
        """Empty some of the consecutive ones of *slots* from index *at* on."""
        ring, first = divmod(slots[at], uring.SLOTS)
        run = _run_length(slots, at)
        # After an error the kernel returns how many it had emptied before.
        done = uring.update_buffers(self._rings[ring], first, [(0, 0)] * run)
        self._give_back(slots[at : at + done])
        return done

    def close(self) -> None:
        self._releasing.close()
        for ring in self._rings:
            os.close(ring)
        self._rings.clear()

    def _take(self, count: int) -> list[int]:
        """Take *count* free slots, in order; fewer if no ring can be added."""
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
    """How many of *slots*, from *at* on, are consecutive in one ring."""
    first = slots[at]
    end = at + 1
    while (
        end < len(slots) and slots[end] == first + end - at and slots[end] % uring.SLOTS
    ):
        end += 1
    return end - at


class LockPins:
    """mlock(2), with one mapping for each buffer."""

    stays: Final = False

    def __init__(self, reason: str, most: int = _MAX_MAPPINGS) -> None:
        """*reason* says why there is no better way; *most* limits the mappings.

        Raises:
            OSError: mlock(2) is not allowed.
        """
        self.description: Final = f"mlock ({reason})"
        self._most: Final = most
        self.refusal = ""
        # By token: address and length.
        self._mappings: dict[int, tuple[int, int]] = {}
        self._last = 0
        self._lock: Final = Lock()
        self._releasing: Final = Releasing(self._unmap)
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
        if len(self._mappings) >= self._most:
            raise os_error(errno.ENOMEM)
        # Make another mapping: the caller unmaps its own soon, which would unlock the
        # pages.
        address = mmcalls.mmap(buffer.fd, buffer.offset, buffer.length)
        with self._lock:
            self._last += 1
            token = self._last
            self._mappings[token] = (address, buffer.length)
        try:
            mmcalls.mlock(address, buffer.length)
        except OSError:
            self.release([token])
            raise
        return token

    def release(self, tokens: Iterable[int]) -> None:
        self._releasing.release(list(tokens))

    def _unmap(self, tokens: list[int], at: int) -> int:
        mmcalls.munmap(*self._mappings[tokens[at]])
        del self._mappings[tokens[at]]
        return 1

    def close(self) -> None:
        self._releasing.close()
        for token in list(self._mappings):
            # The kernel unmaps the rest when the process ends.
            with suppress(OSError):
                self._unmap([token], 0)


class NoPins:
    """Pins nothing."""

    stays: Final = False
    refusal: Final = ""

    def __init__(self, reason: str) -> None:
        """*reason* says why there is no better way."""
        self.description: Final = f"none ({reason})"

    def hold(self, buffers: list[Buffer]) -> list[int | None]:
        return [None] * len(buffers)

    def release(self, tokens: Iterable[int]) -> None:
        pass

    def close(self) -> None:
        pass
