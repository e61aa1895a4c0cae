"""The task that sends all traces of a mount, some milliseconds after it happened."""

from __future__ import annotations

import logging
from typing import Final, Protocol

import trio

log = logging.getLogger(__name__)

# Records that have come within this time go in one message. Longer would keep users
# waiting, shorter costs the callers of fallocate(2) time.
_TOGETHER_SECONDS: Final = 0.03


class Tracer(Protocol):
    """A trace that is being taken."""

    def flush(self) -> bool:
        """Send what there is room for now; return whether that was all."""

    def stop(self) -> object:
        """Take no more, and forget what has not been sent."""


class Tracers:
    """All traces of a mount that are being taken."""

    def __init__(self) -> None:
        self.taken: Final[set[Tracer]] = set()
        self._some = trio.Event()

    def wake(self) -> None:
        """There is something to be sent. Never raises."""
        self._some.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._some.wait()
            self._some = trio.Event()
            await trio.sleep(_TOGETHER_SECONDS)
            if not self.flush():
                # There is no room: it is looked for again, a little later.
                self._some.set()

    def flush(self) -> bool:
        """Send what there is room for now; return whether that was all."""
        # Each of them, also after one that has no room.
        left = [tracer for tracer in list(self.taken) if not _flushed(tracer)]
        return not left


def _flushed(tracer: Tracer) -> bool:
    try:
        return tracer.flush()
    except Exception:
        # It ends this trace, and not the mount.
        log.exception("bug in a trace, which ends")
        tracer.stop()
        return True
