"""The task that sends all traces of a mount, with a delay of some milliseconds."""

from __future__ import annotations

import logging
from typing import Final, Protocol

import trio

log = logging.getLogger(__name__)

# Records of this period go in one message. Longer would keep users waiting; shorter
# would cost the callers of fallocate(2) time.
_TOGETHER_SECONDS: Final = 0.03


class Tracer(Protocol):
    """A trace in progress."""

    def flush(self) -> bool:
        """Send as much as there is room for; return whether that was all."""

    def stop(self) -> object:
        """End the trace, and forget what was not sent."""


class Tracers:
    """All traces in progress of a mount."""

    def __init__(self) -> None:
        self.taken: Final[set[Tracer]] = set()
        self._some = trio.Event()

    def wake(self) -> None:
        """Tell the task that there is something to send. Never raises."""
        self._some.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            await trio.sleep(_TOGETHER_SECONDS)
            if not self.flush():
                # There is no room: try again a little later.
                self._some.set()

    def flush(self) -> bool:
        """Send as much as there is room for; return whether that was all."""
        # Flush each trace, also after one that has no room.
        left = [tracer for tracer in list(self.taken) if not _flushed(tracer)]
        return not left


def _flushed(tracer: Tracer) -> bool:
    try:
        return tracer.flush()
    except Exception:
        # A bug ends this trace, and not the mount.
        log.exception("bug in a trace, which ends")
        tracer.stop()
        return True
