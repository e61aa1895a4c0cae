"""inaccfs: memory that userspace can size, allocate and punch, but never read,
write or map.

The ladder of the package, each importing only what stands above it:

    errors, syscalls,    the kinds of failure; the system calls that Python lacks;
    mountinfo, streams   what is mounted where; the standard streams
    backing              the tmpfs or hugetlbfs that holds the memory
    helper               the process for what may hang or must be killable
    shim                 the patch: one file's rules and state
    fuse                 mounting, the wire, the channel, the namespace
    control              the control socket: messages and server
    client               the other end of it: inaccfs.connect(), inaccfs.client.aio
    kvm                  the simulated KVM, an ordinary client
    inprocess            the shim and such a client in one process, for tests
    daemon               one mount and its trio loop
    launch, cli          starting a daemon from another process, and the command
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inaccfs._version import __version__
from inaccfs.errors import (
    BackingError,
    InaccfsError,
    MountError,
    NotMountedError,
    OptionError,
    UnmountError,
)

if TYPE_CHECKING:
    from inaccfs.client import (
        MFD_ALLOW_SEALING,
        MFD_CLOEXEC,
        MFD_HUGETLB,
        MFD_INACCESSIBLE,
        ControlError,
        connect,
    )
    from inaccfs.launch import Mount, mounted

__all__ = [
    "MFD_ALLOW_SEALING",
    "MFD_CLOEXEC",
    "MFD_HUGETLB",
    "MFD_INACCESSIBLE",
    "BackingError",
    "ControlError",
    "InaccfsError",
    "Mount",
    "MountError",
    "NotMountedError",
    "OptionError",
    "UnmountError",
    "__version__",
    "connect",
    "mounted",
]


def __getattr__(name: str) -> object:
    # Whoever only mounts does not pay for what a client imports; nor does the command,
    # which must see to signals and streams before it imports anything that takes time.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("Mount", "mounted"):
        from inaccfs import launch

        return getattr(launch, name)
    from inaccfs import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
