"""Clients of the control socket: a core without I/O (core, notifying) and two faces.

`inaccfs.connect` returns a client of `blocking`; import `aio` by name for trio.
"""

from __future__ import annotations

from inaccfs.client.blocking import Client, connect
from inaccfs.client.blockingfile import File
from inaccfs.client.errors import (
    CannotConnectError,
    ClientClosedError,
    ConnectionLostError,
    ControlError,
    NotControlSocketError,
)
from inaccfs.client.requests import Pfn
from inaccfs.client.threads import Notifier
from inaccfs.control.messages import (
    MFD_ALLOW_SEALING,
    MFD_CLOEXEC,
    MFD_HUGETLB,
    MFD_INACCESSIBLE,
)
from inaccfs.errors import BusError, PageError, PinnedError

__all__ = [
    "MFD_ALLOW_SEALING",
    "MFD_CLOEXEC",
    "MFD_HUGETLB",
    "MFD_INACCESSIBLE",
    "BusError",
    "CannotConnectError",
    "Client",
    "ClientClosedError",
    "ConnectionLostError",
    "ControlError",
    "File",
    "NotControlSocketError",
    "Notifier",
    "PageError",
    "Pfn",
    "PinnedError",
    "connect",
]
