"""What keeps frames where they are.

The seed makes the memory unmovable and unevictable. From outside of the kernel that is
a long-term pin, which a process gets by registering memory as buffers of an io_uring:
nothing is ever submitted there. mlock(2) comes second: it keeps pages in memory, but
compaction moves them.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from ctypes import addressof, create_string_buffer
from heapq import heappop, heappush
from threading import Lock, Timer
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from inaccfs import mmcalls, uring
from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

_TRY_AGAIN_SECONDS: Final = 1.0

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
        """Let go at once what belongs to *tokens*. Never raises.

        What the kernel does not let go of it is asked for again, every second.
        """

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


class _Releasing:
    """Lets go of tokens; those that the kernel refuses, again and again.

    It has no reason to refuse but want of memory (ENOMEM). Memory that stays pinned
    would be lost to everybody, so it is asked again every second, by a thread that
    there is only meanwhile.
    """

    def __init__(self, let_go: Callable[[list[int], int], int]) -> None:
        """*let_go* lets tokens of a list go, from an index on; returns how many.

        It may raise `OSError`, and is called by one thread at a time for a token.
        """
        self._let_go: Final = let_go
        self._trouble: Final = Trouble()
        self._lock: Final = Lock()
        self._refused: list[int] = []
        # Tries those again. Of a thread that could not be started nothing is left: the
        # next release starts one.
        self._timer: Timer | None = None
        self._closed = False

    def release(self, tokens: list[int]) -> None:
        """Let go of *tokens*, now or later."""
        refused = self._try(tokens)
        if refused or self._refused:
            self._try_later(refused)

    def close(self) -> None:
        """Try no more."""
        with self._lock:
            self._closed = True
            timer = self._timer
        if timer is not None:
            timer.cancel()
            timer.join()

    def _try(self, tokens: list[int]) -> list[int]:
        """Those that have not been let go."""
        at = 0
        try:
            while at < len(tokens):
                at += self._let_go(tokens, at)
        except OSError as exc:
            self._trouble.met(f"pages stay pinned for now: {exc.strerror}")
        return tokens[at:]

    def _try_later(self, tokens: list[int]) -> None:
        with self._lock:
            self._refused += tokens
            if self._closed or self._timer is not None:
                return
            timer = Timer(_TRY_AGAIN_SECONDS, self._try_again)
            # Python does not wait for it at its end.
            timer.daemon = True
            with suppress(RuntimeError):
                timer.start()
                self._timer = timer

    def _try_again(self) -> None:
        with self._lock:
            tokens, self._refused = sorted(self._refused), []
        refused = self._try(tokens)
        # Only now: until then `close` waits for this thread.
        with self._lock:
            self._timer = None
        if refused or self._refused:
            self._try_later(refused)
        else:
            self._trouble.over()


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
        self._releasing: Final = _Releasing(self._empty)
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
        self._releasing.release(sorted(tokens))

    def _empty(self, slots: list[int], at: int) -> int:
        """Empty those of *slots* that follow each other from index *at* on."""
        ring, first = divmod(slots[at], uring.SLOTS)
        run = _run_length(slots, at)
        uring.update_buffers(self._rings[ring], first, [(0, 0)] * run)
        self._give_back(slots[at : at + run])
        return run

    def close(self) -> None:
        self._releasing.close()
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
        self._releasing: Final = _Releasing(self._unmap)
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
        self._releasing.release(list(tokens))

    def _unmap(self, tokens: list[int], at: int) -> int:
        mmcalls.munmap(*self._mappings[tokens[at]])
        del self._mappings[tokens[at]]
        return 1

    def close(self) -> None:
        self._releasing.close()
        for token in list(self._mappings):
            # What is left goes with the process.
            with suppress(OSError):
                self._unmap([token], 0)


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
