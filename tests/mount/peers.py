"""A peer of the control socket that says exactly what a test wants it to say."""

from __future__ import annotations

import array
import json
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.mount.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Message = dict[str, Any]


class Peer:
    """A blocking connection that speaks QMP; it answers no event by itself."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(path))
        self._read = bytearray()
        # The events that arrived, in order.
        self.events: list[Message] = []
        # The fds that were received; a test that takes one closes it.
        self.fds: list[int] = []

    def receive(self) -> Message:
        """The next message, which may be an event."""
        while b"\n" not in self._read:
            data, ancillary, _, _ = self.socket.recvmsg(
                1 << 20, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC
            )
            assert data, "the server has closed the connection"
            self._read += data
            for _, _, received in ancillary:
                self.fds += array.array("i", received)
        line, _, self._read = self._read.partition(b"\n")
        message: Message = json.loads(line)
        return message

    def answer(self) -> Message:
        """The next answer; events before it are kept."""
        while "event" in (message := self.receive()):
            self.events.append(message)
        return message

    def event(self) -> Message:
        """The data of the next event, and its name as "event"."""
        message = self.events.pop(0) if self.events else self.receive()
        assert "event" in message, message
        return {"event": message["event"], **message["data"]}

    def begin(self, command: str, *fds: int, **arguments: object) -> None:
        """Send a command; a later call takes its answer."""
        message = {"execute": command, "arguments": arguments}
        data = json.dumps(message).encode() + b"\n"
        if fds:
            assert socket.send_fds(self.socket, [data], fds) == len(data)
        else:
            self.socket.sendall(data)

    def do(self, command: str, *fds: int, **arguments: object) -> Any:
        """What a command returns, or the text of its error."""
        self.begin(command, *fds, **arguments)
        answer = self.answer()
        return answer["error"]["desc"] if "error" in answer else answer["return"]

    def done(self, event: Message) -> object:
        """Answer an event."""
        return self.do(
            "invalidate-done", notifier=event["notifier"], sequence=event["sequence"]
        )


@contextmanager
def peer(path: Path, *, negotiate: bool = True) -> Iterator[Peer]:
    """A connected peer, closed at the end with the fds that it got."""
    made = Peer(path)
    try:
        assert "QMP" in made.receive()
        if negotiate:
            assert made.do("qmp_capabilities") == {}
        yield made
    finally:
        made.socket.close()
        for fd in made.fds:
            os.close(fd)
