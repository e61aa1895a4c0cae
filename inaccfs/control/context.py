"""The state that the sessions of a mount share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inaccfs.control.limits import Policy
from inaccfs.control.tracers import Tracers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from inaccfs.control.caller import Caller
    from inaccfs.control.mountfiles import Files
    from inaccfs.control.registration import Registration
    from inaccfs.shim.superblock import Superblock
    from inaccfs.status import Status


@dataclass(frozen=True, slots=True)
class Actions:
    """The actions of commands on the daemon itself."""

    status: Callable[[], Awaitable[Status]]
    quit: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Context:
    """The mount that sessions serve, and the state that they share."""

    superblock: Superblock
    files: Files
    actions: Actions
    policy: Policy = field(default_factory=Policy)
    # The connected peers, by number.
    callers: dict[int, Caller] = field(default_factory=dict)
    # The notifiers of all sessions, by number; and the source of new numbers.
    notifiers: dict[int, Registration] = field(default_factory=dict)
    notifier_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    # The traces in progress.
    tracers: Tracers = field(default_factory=Tracers)
