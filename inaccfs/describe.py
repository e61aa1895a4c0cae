"""The description of a mount: `query-status`, and the virtual xattrs of its root."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import trio

from inaccfs import status
from inaccfs._version import __version__
from inaccfs.shim import census

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.config import Config
    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.seal import Seal
    from inaccfs.ptraced import Tracer
    from inaccfs.shim.frames import FrameSource


class Describer:
    """Describes a mount. Call its methods in the trio loop."""

    def __init__(
        self,
        config: Config,
        mountpoint: str,
        control: str,
        namespace: Namespace,
        frames: FrameSource,
        seal: Callable[[], Seal],
        tracer: Tracer | None,
    ) -> None:
        """*seal* is called later, when the offer of the kernel is known."""
        self._config = config
        self._mountpoint = mountpoint
        self._control = control
        self._namespace = namespace
        self._backing = namespace.inodes.backing
        self._frames = frames
        self._seal = seal
        self._tracer = tracer
        check = trio.from_thread.check_cancelled
        self._census = census.Census(partial(census.count, self._backing.root, check))

    @property
    def xattrs(self) -> dict[str, Callable[[], Awaitable[bytes]]]:
        """The functions that make the values of xattrs, by name."""
        return {
            status.MAGIC_XATTR: self._magic,
            status.CONTROL_XATTR: self._control_path,
            status.STATUS_XATTR: self._status_json,
        }

    async def _magic(self) -> bytes:
        return b"0x%08x" % self._config.rules.magic

    async def _control_path(self) -> bytes:
        return os.fsencode(self._control)

    async def _status_json(self) -> bytes:
        return status.encode(await self.status())

    async def status(self) -> status.Status:
        """The current state of the mount.

        Raises:
            OSError: the daemon has no free fd to query the backing.
        """
        files, allocated = await self._totals()
        space = os.fstatvfs(self._backing.root)
        seal = self._seal()
        return status.Status(
            mountpoint=_printable(self._mountpoint),
            backing=_printable(self._backing.description),
            size=space.f_blocks * space.f_frsize,
            page_size=self._backing.page_size,
            files=files + self._namespace.opens.nameless,
            allocated_pages=allocated // self._backing.page_size,
            semantics=self._config.rules.name,
            sealed=seal.sealed,
            mmap=str(seal),
            pfn_source=self._frames.name,
            pinning=self._frames.pinning,
            pid=os.getpid(),
            control=_printable(self._control),
            log=None if self._config.log is None else _printable(self._config.log),
            version=__version__,
            tracer=None if self._tracer is None else str(self._tracer),
        )

    async def _totals(self) -> census.Totals:
        """The number of files with a name, and the bytes allocated for all files."""
        space = os.fstatvfs(self._backing.root)
        # Other programs may use the same file system, or it may have no limit.
        if not self._backing.private or not space.f_blocks:
            return await self._census.take()
        # This counts open files without a name, too.
        used = (space.f_blocks - space.f_bfree) * space.f_frsize
        return census.Totals(self._namespace.named_files, used)


def _printable(path: str) -> str:
    """*path* as text for JSON; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")
