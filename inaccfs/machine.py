"""What this machine offers. Nothing here changes it.

It is a class, so that a test can replace it.
"""

from __future__ import annotations

import mmap
import os
import resource
import shutil
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from inaccfs import kvmcalls, mmcalls, uring
from inaccfs.errors import not_started

if TYPE_CHECKING:
    from collections.abc import Iterator

# The number of a page's frame, in an entry of /proc/PID/pagemap.
_PFN_BITS: Final = (1 << 55) - 1
_ENTRY_BYTES: Final = 8


class Machine:
    """The machine that this process runs on, as this user sees it."""

    def uid(self) -> int:
        """The effective uid."""
        return os.geteuid()

    def release(self) -> str:
        """The release of the kernel: "6.18.0-rc1"."""
        return os.uname().release

    def stat(self, path: str) -> os.stat_result | None:
        """stat(2); None if there is nothing, or it may not be seen."""
        try:
            return os.stat(path)
        except OSError:
            return None

    def read(self, path: str) -> str | None:
        """The text of a small file; None if it cannot be read."""
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read(1 << 20)
        except OSError:
            return None

    def which(self, command: str) -> str | None:
        """The path of a command; None if there is none."""
        return shutil.which(command)

    def may_write(self, path: str) -> bool:
        """Whether files can be made in a directory."""
        return os.access(path, os.W_OK | os.X_OK, effective_ids=True)

    def limit(self, number: int) -> int | None:
        """The hard limit of a resource; None for no limit. getrlimit(2)."""
        hard = resource.getrlimit(number)[1]
        return None if hard == resource.RLIM_INFINITY else hard

    def has(self, capability: int) -> bool:
        """Whether this process has a capability, such as `syscalls.CAP_SYS_ADMIN`."""
        return bool(self.capabilities() >> capability & 1)

    def capabilities(self) -> int:
        """The effective capabilities, as bits."""
        for line in (self.read("/proc/self/status") or "").splitlines():
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
        return 0

    def is_initial_namespace(self) -> bool:
        """Whether this is the initial user namespace. See user_namespaces(7)."""
        found = (self.read("/proc/self/uid_map") or "").split()
        return found == ["0", "0", "4294967295"]

    def user_namespaces(self) -> str:
        """Empty if this user may make them; otherwise the reason."""
        if shutil.which("unshare") is None:
            return "no unshare(1) to try it"
        # In a separate process, because a namespace cannot be left.
        try:
            done = subprocess.run(
                ["unshare", "-Urm", "true"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "LC_ALL": "C"},
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as exc:
            return f"cannot try it with unshare(1): {not_started(exc) or exc.strerror}"
        lines = done.stderr.splitlines() or [f"unshare: status {done.returncode}"]
        return lines[-1] if done.returncode else ""

    def try_device(self, path: str) -> OSError | None:
        """Open a device to read and write, and close it; why that fails, if it does."""
        try:
            with _opened(path, os.O_RDWR):
                return None
        except OSError as exc:
            return exc

    def try_io_uring(self) -> OSError | None:
        """Make a ring, and close it; why that fails, if it does."""
        try:
            os.close(uring.setup()[0])
        except OSError as exc:
            return exc
        return None

    def try_cachestat(self) -> OSError | None:
        """Ask cachestat(2) about a file in memory; why that fails, if it does."""
        fd = os.memfd_create("inaccfs-doctor", os.MFD_CLOEXEC)
        try:
            mmcalls.pages_there(fd, 0, 0)
        except OSError as exc:
            return exc
        finally:
            os.close(fd)
        return None

    def shows_frames(self) -> bool:
        """Whether /proc/self/pagemap has frame numbers. They are 0 for others."""
        page = b"x" * mmap.PAGESIZE
        with suppress(OSError), _opened("/proc/self/pagemap", os.O_RDONLY) as fd:
            at = id(page) // mmap.PAGESIZE * _ENTRY_BYTES
            entry = os.pread(fd, _ENTRY_BYTES, at)
            return bool(int.from_bytes(entry, "little") & _PFN_BITS)
        return False

    def guest_memfd(self) -> str:
        """Empty if KVM has guest_memfd; otherwise why not."""
        try:
            with _opened(kvmcalls.DEVICE, os.O_RDWR) as fd:
                vm = kvmcalls.vm_with_files(fd)
        except OSError as exc:
            return f"{kvmcalls.DEVICE}: {exc.strerror}"
        if vm is None:
            return "no VM of this KVM can have it"
        os.close(vm)
        return ""


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
