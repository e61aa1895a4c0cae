"""The trio face of a trace; see tracing.py."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from inaccfs.client import tasks
from inaccfs.client.tracing import Reading

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from inaccfs.control.messages import TraceRecord
    from inaccfs.shim.trace import What


class Trace:
    """As in the blocking face, but `read` and iterating are awaited.

    One task at a time may read it.
    """

    def __init__(self, reading: Reading) -> None:
        """Use `Client.trace`."""
        self._reading: Final = reading

    def __repr__(self) -> str:
        return f"<Trace of {self._reading.path}>"

    @property
    def lost(self) -> int:
        """How many records were lost, because they were not read in time."""
        return self._reading.lost

    @property
    def over(self) -> bool:
        """Whether no more records will come; raises as in the blocking face."""
        return self._reading.over

    async def read(self) -> list[TraceRecord]:
        """Records since the last call; waits for some. Empty when `over`.

        If this is cancelled, no record is lost: the next call returns them.
        """
        await trio.lowlevel.checkpoint()
        reading = self._reading
        while not reading.records and not reading.over:
            await receive(reading)
        return reading.take()

    async def __aiter__(self) -> AsyncIterator[TraceRecord]:
        while found := await self.read():
            for record in found:
                yield record

    def stop(self) -> None:
        """End the trace. Earlier records can still be read; then it is `over`."""
        self._reading.stop()


async def receive(reading: Reading) -> None:
    """Wait until some records have arrived."""
    while True:
        await trio.lowlevel.wait_readable(reading.connection)
        try:
            reading.receive()
        except BlockingIOError:
            continue
        return


@asynccontextmanager
async def traced(path: str, kinds: Iterable[What]) -> AsyncIterator[Trace]:
    """A trace on its own connection, during a with block."""
    reading = Reading(path, *await tasks.dial(path))
    try:
        reading.start(kinds)
        while not reading.started:
            await receive(reading)
        yield Trace(reading)
    finally:
        reading.close()
