"""inaccfs: memory that userspace can size, allocate and punch, but never read,
write or map.

docs/architecture.md lists the parts of the package, and what each may import.
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
    # Import the client only when it is used: a program that only mounts does not need
    # it, and the command must set up signals and streams before any slow import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("Mount", "mounted"):
        from inaccfs import launch

        return getattr(launch, name)
    from inaccfs import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
