"""What tests of the blocking client share: callbacks, threads, Ctrl-C and a file."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from inaccfs.control.messages import Invalidate, InvalidateDone
from tests.unit.client_fakes import PATIENCE, FakeDaemon, Peer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def in_thread(call: Any, *args: Any) -> Iterator[Any]:
    """Run a call in a thread during the block; gives its Future."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call, *args)


def invalidate(notifier: int = 1, sequence: int = 1) -> Invalidate:
    return Invalidate(notifier=notifier, start=2, end=5, sequence=sequence)


def invalidated(daemon: FakeDaemon, event: Invalidate | None = None) -> Peer:
    """Send the last registered notifier an event, and wait for the answer."""
    events = daemon.peer()
    events.tell(event or invalidate())
    events.next(InvalidateDone)
    return events


class Callback:
    """Remembers its calls; with *blocks* each waits for `may_return`."""

    def __init__(self, *, blocks: bool = False) -> None:
        self.calls: list[tuple[int, int]] = []
        self.thread: threading.Thread | None = None
        self.entered = threading.Event()
        self.may_return = threading.Event()
        if not blocks:
            self.may_return.set()

    def __call__(self, start: int, end: int) -> None:
        self.calls.append((start, end))
        self.thread = threading.current_thread()
        self.entered.set()
        assert self.may_return.wait(PATIENCE)


class CtrlC:
    """Interrupts the main thread when it is at a given place.

    A terminal sends its signal wherever the thread is; this waits for the place.
    """

    def __init__(self, innermost: str, caller: str) -> None:
        self._innermost, self._caller = innermost, caller
        self._done = threading.Event()
        # Signals without a pause would leave the thread no time to go on.
        self._handled = threading.Event()

    def _handle(self, _: int, frame: FrameType | None) -> None:
        self._handled.set()
        if self._done.is_set():
            return
        names = [found.f_code.co_name for found, _ in traceback.walk_stack(frame)]
        if names[0] == self._innermost and self._caller in names:
            self._done.set()
            raise KeyboardInterrupt

    def _signal(self) -> None:
        while not self._done.is_set():
            self._handled.clear()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            # Again, if it came just before the thread went to wait in the kernel.
            self._handled.wait(0.01)

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        before = signal.signal(signal.SIGUSR1, self._handle)
        try:
            with in_thread(self._signal):
                try:
                    yield
                finally:
                    self._done.set()
                    self._handled.set()
        finally:
            signal.signal(signal.SIGUSR1, before)


@contextmanager
def some_file() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)
