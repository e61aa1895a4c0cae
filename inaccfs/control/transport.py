"""What the connections of all peers share."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inaccfs.control.closings import Closings
from inaccfs.control.peeroutlet import Backlog
from inaccfs.control.readers import Readers

if TYPE_CHECKING:
    from inaccfs.control.closings import Receiver
    from inaccfs.control.limits import Policy

log = logging.getLogger(__name__)


class Trouble:
    """Something that fails, is tried again and again, and is logged once."""

    def __init__(self) -> None:
        self._met = ""

    def met(self, text: str) -> None:
        """It has failed."""
        if text != self._met:
            log.error("%s", text)
        self._met = text

    def over(self) -> None:
        """It has succeeded: log it when it fails again."""
        self._met = ""


@dataclass(frozen=True, slots=True)
class Transport:
    """Made once for each control socket."""

    policy: Policy
    # Receives the fds that peers send.
    receiver: Receiver
    # The number of the mount, whose fds are taken.
    device: str
    readers: Readers = field(default_factory=Readers)
    closings: Closings = field(default_factory=Closings)
    backlog: Backlog = field(default_factory=Backlog)
    # Of those that have to wait for epoll_ctl(2).
    trouble: Trouble = field(default_factory=Trouble)
