"""The state that the connections of all peers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inaccfs.control.closings import Closings
from inaccfs.control.peeroutlet import Backlog
from inaccfs.control.readers import Readers
from inaccfs.trouble import Trouble

if TYPE_CHECKING:
    from inaccfs.control.closings import Receiver
    from inaccfs.control.limits import Policy


@dataclass(frozen=True, slots=True)
class ServerParts:
    """The state that the connections of one control socket share."""

    policy: Policy
    # Receives the fds that peers send.
    receiver: Receiver
    # The number of the mount whose fds are accepted.
    device: str
    readers: Readers = field(default_factory=Readers)
    closings: Closings = field(default_factory=Closings)
    backlog: Backlog = field(default_factory=Backlog)
    # Logs that connections have to wait for epoll_ctl(2).
    trouble: Trouble = field(default_factory=Trouble)
