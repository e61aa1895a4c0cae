"""What the tests of kills have in common: a peer in a process of its own."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.hard.daemons import Actor

# Longer than any test waits: a call that only this timeout ends has hung.
OPTIONS: Final = ("--ack-timeout", "600", "--size", "512m")

# The functions that punch and allocate: in the loop, in a thread, in a worker.
CHANGES: Final = ("inaccfs.syscalls.fallocate_now", "inaccfs.syscalls.fallocate")

DEAD: Final = ("ENOTCONN", "ECONNABORTED")

Message = dict[str, Any]


class RelayedPeer:
    """A peer that is a separate process; it answers no event by itself."""

    def __init__(self, relay: Actor) -> None:
        self.relay = relay
        assert "QMP" in self.hear()
        self.do("qmp_capabilities")

    def hear(self) -> Message:
        found: Message = json.loads(self.relay.hear())
        return found

    def say(self, command: str, **arguments: object) -> None:
        self.relay.say(json.dumps({"execute": command, "arguments": arguments}))

    def do(self, command: str, **arguments: object) -> Any:
        self.say(command, **arguments)
        while "event" in (answer := self.hear()):
            pass
        assert "return" in answer, answer
        return answer["return"]

    def answer(self, event: Message) -> None:
        """Answer an event, and do not wait for the reply."""
        data = event["data"]
        self.say(
            "invalidate-done", notifier=data["notifier"], sequence=data["sequence"]
        )

    def event(self) -> Message:
        """The next event; replies before it are dropped."""
        while "event" not in (message := self.hear()):
            pass
        return message

    def answer_all(self, unanswered: Message | None) -> None:
        """Answer all events until the connection ends."""
        # The relay ends with its connection.
        with suppress(BrokenPipeError):
            if unanswered is not None:
                self.answer(unanswered)
            while line := self.relay.hear():
                message = json.loads(line)
                if "sequence" in message.get("data", {}):
                    self.answer(message)
