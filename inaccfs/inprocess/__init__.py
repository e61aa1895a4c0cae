"""The real shim in one process: without a mount, a socket, or further threads.

    from inaccfs.inprocess import Mount
    from inaccfs.kvm import VM
    from inaccfs.semantics import V10

    with Mount(V10()) as mount:
        fd = mount.memfd_create("guest", 4 << 20)
        with VM(mount.connect()) as vm:
            ...
            mount.fallocate(fd, PUNCH, 0, 4096)

Rules, notifiers, frames and references are those of the daemon, over a memfd and
simulated frames. FUSE and the control socket are left out. It serves tests, and
programs that need every run to be the same.
"""

from __future__ import annotations

from inaccfs.inprocess.client import Client, Due, File, Notifier
from inaccfs.inprocess.loop import BlockingLoop, ThreadLoop
from inaccfs.inprocess.mount import Mount

__all__ = [
    "BlockingLoop",
    "Client",
    "Due",
    "File",
    "Mount",
    "Notifier",
    "ThreadLoop",
]
