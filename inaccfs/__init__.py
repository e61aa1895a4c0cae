"""inaccfs: memory that userspace can size, allocate and punch, but never read,
write or map.

The ladder of the package, each importing only what stands above it:

    errors, syscalls,    the kinds of failure; the system calls that Python lacks;
    mountinfo            what is mounted where
    shim                 the patch: one file's rules and state, and the backing
    fuse                 mounting, the wire, the channel, the namespace
    control              the control socket: messages and server
    daemon               one mount and its trio loop
    launch, cli          starting a daemon from another process, and the command
"""

from __future__ import annotations

from inaccfs._version import __version__
from inaccfs.errors import (
    BackingError,
    InaccfsError,
    MountError,
    NotMountedError,
    OptionError,
    UnmountError,
)
from inaccfs.launch import Mount, mounted

__all__ = [
    "BackingError",
    "InaccfsError",
    "Mount",
    "MountError",
    "NotMountedError",
    "OptionError",
    "UnmountError",
    "__version__",
    "mounted",
]
