"""A long system call in a worker thread that a signal can end.

A tmpfs looks for signals before each page that it allocates, and gives back what
it had taken; so an allocation that is interrupted leaves the file as it was, but
giving back gigabytes takes a while. Who interrupts is told at once; who wants to
look at the file waits until that while is over.
"""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

# A real-time signal: nothing else in the process or in its libraries uses it.
INTERRUPT_SIGNAL: Final = signal.SIGRTMIN

# How long an interrupted call may take to say how it ended. The kernel looks for
# signals before each page, so when this is over the call can only be giving back
# what it had taken, and EINTR is certain.
_GRACE_SECONDS: Final = 0.03

# A signal that comes just before the call enters the kernel is lost: send it again.
_RESEND_SECONDS: Final = 0.005


def install_interrupt_handler() -> None:
    """Make INTERRUPT_SIGNAL end a system call with EINTR and do nothing else.

    Call it once, in the main thread, before `run_interruptible`.
    """
    signal.signal(INTERRUPT_SIGNAL, lambda _number, _frame: None)


class _Call:
    """The worker thread's side: the call, and the way to interrupt it."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        # Guards _thread. Who holds it and finds a thread there knows that the thread
        # cannot leave the call, so no signal ever hits that thread's next job.
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._token = trio.lowlevel.current_trio_token()
        # Set in the trio loop when the thread has left the call.
        self.done = trio.Event()

    def run(self) -> None:
        with self._lock:
            self._thread = threading.get_ident()
        try:
            self._function()
        finally:
            with self._lock:
                self._thread = None
            # The loop may be over, with the daemon about to exit: nobody waits then.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.done.set)

    def interrupt(self) -> None:
        with self._lock:
            if self._thread is not None:
                signal.pthread_kill(self._thread, INTERRUPT_SIGNAL)


async def run_interruptible(
    function: Callable[[], None], interrupted: trio.Event
) -> trio.Event | None:
    """Run *function*, one system call, in a worker thread until done or interrupted.

    Returns None when the call is over. When *interrupted* was set and the kernel is
    still giving back what the call had taken, returns an event that is set once it
    has: to the caller of the system call that is EINTR.

    Raises:
        OSError: what the system call raised, EINTR included.
    """
    call = _Call(function)
    outcome: OSError | None = None
    finished = False

    async def interrupt() -> None:
        await interrupted.wait()
        with trio.move_on_after(_GRACE_SECONDS):
            while True:
                call.interrupt()
                await trio.sleep(_RESEND_SECONDS)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupt)
        try:
            # Abandoned at the end of the grace: the thread goes on by itself.
            await trio.to_thread.run_sync(call.run, abandon_on_cancel=True)
            finished = True
        except OSError as exc:
            # Carried out of the nursery by hand, which would wrap it in a group.
            outcome, finished = exc, True
        nursery.cancel_scope.cancel()
    if outcome is not None:
        raise outcome
    return None if finished else call.done
