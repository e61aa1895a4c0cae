"""Conversations of the clients' core without a connection, and the daemon's part."""

from __future__ import annotations

import json
import os
from typing import Any

import msgspec

from inaccfs.client.core import Conversation
from inaccfs.control import qmp


class Talk:
    """A conversation, and the daemon's part in it."""

    def __init__(self) -> None:
        self.conversation = Conversation("/run/socket")
        self.conversation.feed(qmp.greeting())

    def sent(self) -> list[tuple[str, dict[str, Any], int]]:
        """What the client has sent since the last call: names, arguments, ids."""
        said = []
        for data, fd in self.conversation.take_outgoing():
            if fd >= 0:
                os.close(fd)
            message = json.loads(data)
            said.append((message["execute"], message["arguments"], message["id"]))
        return said

    def returns(self, number: int, value: object, fds: tuple[int, ...] = ()) -> None:
        data = qmp.encode_return(value, msgspec.Raw(str(number).encode()))
        self.conversation.feed(data, fds)

    def refuses(self, number: int, kind: str, desc: str) -> None:
        data = qmp.encode_error(kind, desc, msgspec.Raw(str(number).encode()))
        self.conversation.feed(data)


def new_fd() -> int:
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
