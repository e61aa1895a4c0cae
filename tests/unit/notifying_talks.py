"""Notifiers of the clients' core without a connection, and the daemon's part."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from inaccfs.client.core import Conversation
from inaccfs.client.notifying import Callbacks, Notifiers, Registration
from inaccfs.control import messages, qmp

Said = tuple[str, dict[str, Any]]


def nothing(start: int, end: int) -> None:
    pass


class Talk:
    """Notifiers, and the daemon's part in it."""

    def __init__(self) -> None:
        self.conversation = Conversation("/run/socket")
        self.notifiers = Notifiers(self.conversation)
        self.conversation.feed(qmp.greeting())
        self.left: list[int] = []
        self._ids: list[int] = []

    def said(self) -> list[Said]:
        """What the client has sent since the last call."""
        found = []
        for data, _ in self.conversation.take_outgoing():
            message = json.loads(data)
            found.append((message["execute"], message["arguments"]))
            self._ids.append(message["id"])
        return found

    def register(
        self, callbacks: Callbacks | None = None, number: int = 7
    ) -> Registration:
        call = self.conversation.start(
            self.notifiers.register(
                "/a",
                callbacks or Callbacks(nothing),
                lambda: self.left.append(number),
            )
        )
        assert self.said()[-1] == ("register-notifier", {"file": "/a"})
        self.answer(messages.Notifier(notifier=number))
        return call.result()

    def answer(self, value: object = None) -> None:
        """Answer the last command."""
        number = msgspec.Raw(str(self._ids.pop()).encode())
        self.conversation.feed(
            qmp.encode_return({} if value is None else value, number)
        )

    def refuse(self, desc: str) -> None:
        number = msgspec.Raw(str(self._ids.pop()).encode())
        self.conversation.feed(qmp.encode_error("GenericError", desc, number))
