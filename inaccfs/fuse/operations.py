"""`Operations`: pyfuse3's handlers, for the requests that the channel relays to it.

Links, reading directories, extended attributes and statfs. There is no policy here:
each handler finds its node, calls the `Namespace`, and converts the result. See
channel.py.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FUSEError,
    InodeT,
    RequestContext,
    StatvfsData,
)

from inaccfs import errnos
from inaccfs.errnos import os_error
from inaccfs.fuse.caller import Caller
from inaccfs.fuse.wire import ROOT_ID

if TYPE_CHECKING:
    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.wire import Entry
    from inaccfs.syscalls import DirectoryEntry

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Self = TypeVar("Self")

# Access control lists: the kernel would not enforce them (default_permissions checks
# only the mode), so nobody may set one and rely on it. File capabilities: the mount is
# nosuid, and the channel answers that there are none.
_REFUSED_XATTRS: Final = (b"system.", b"security.capability")

VirtualXattr = Callable[[], Awaitable[bytes]]
"""Makes the value of a virtual xattr of the root, for each call."""


def _answered(
    handler: Callable[Concatenate[Self, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Self, P], Coroutine[Any, Any, R]]:
    """Translate errors, once: `OSError` to the caller, a bug to the log and EIO.

    Any exception but `FUSEError` ends pyfuse3, and with it the daemon.
    """

    async def answered(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except Exception as exc:
            if isinstance(exc, OSError) and errnos.is_errno(exc.errno):
                raise FUSEError(exc.errno) from exc
            log.exception("bug in the handler %s", handler.__name__)
            raise FUSEError(errno.EIO) from exc

    answered.__name__ = handler.__name__
    return answered


def _fill(attributes: os.stat_result, nodeid: int) -> EntryAttributes:
    filled = EntryAttributes()
    filled.st_ino = InodeT(nodeid)
    filled.st_mode = pyfuse3.ModeT(attributes.st_mode)
    filled.st_nlink = attributes.st_nlink
    filled.st_uid = attributes.st_uid
    filled.st_gid = attributes.st_gid
    filled.st_rdev = attributes.st_rdev
    filled.st_size = attributes.st_size
    filled.st_blksize = attributes.st_blksize
    filled.st_blocks = attributes.st_blocks
    filled.st_atime_ns = attributes.st_atime_ns
    filled.st_mtime_ns = attributes.st_mtime_ns
    filled.st_ctime_ns = attributes.st_ctime_ns
    return filled


def _entry(entry: Entry) -> EntryAttributes:
    filled = _fill(entry.attributes, entry.nodeid)
    filled.generation = entry.generation
    filled.entry_timeout = entry.entry_valid
    filled.attr_timeout = entry.attr_valid
    return filled


class Operations(pyfuse3.Operations):
    """pyfuse3's handlers over a `Namespace`."""

    # The backing has the memory; a dirty page in the cache would be a second copy.
    enable_writeback_cache = False
    enable_acl = False

    def __init__(
        self, namespace: Namespace, virtual_xattrs: Mapping[str, VirtualXattr]
    ) -> None:
        super().__init__()
        self._namespace = namespace
        self._inodes: Final = namespace.inodes
        self._virtual = {
            os.fsencode(name): make for name, make in virtual_xattrs.items()
        }

    # --- names ---------------------------------------------------------------------

    @_answered
    async def mknod(
        self,
        parent_inode: InodeT,
        name: bytes,
        mode: int,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        parent = self._inodes[parent_inode]
        return _entry(self._namespace.mknod(parent, name, mode, rdev, ctx.uid, ctx.gid))

    @_answered
    async def mkdir(
        self, parent_inode: InodeT, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._inodes[parent_inode]
        return _entry(self._namespace.mkdir(parent, name, mode, ctx.uid, ctx.gid))

    @_answered
    async def symlink(
        self, parent_inode: InodeT, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        parent = self._inodes[parent_inode]
        return _entry(self._namespace.symlink(parent, name, target, ctx.uid, ctx.gid))

    @_answered
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: bytes,
        ctx: RequestContext,
    ) -> EntryAttributes:
        namespace = self._namespace
        await namespace.wait_idle(namespace.inodes[inode])
        return _entry(
            namespace.link(
                namespace.inodes[inode], namespace.inodes[new_parent_inode], new_name
            )
        )

    @_answered
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        return self._namespace.readlink(self._inodes[inode])

    # --- directories -------------------------------------------------------------

    @_answered
    async def readdir(
        self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        directory = self._namespace.directories[fh]
        directory.seek(start_id)
        replied = False
        while (found := directory.peek()) is not None:
            try:
                if not self._reply_one(directory.node, found, token):
                    return
            except OSError:
                # The kernel must get the entries that are already in the reply, because
                # each counts as a lookup. The next call fails.
                if replied:
                    return
                raise
            directory.take()
            replied = True

    def _reply_one(
        self,
        directory: Node,
        found: DirectoryEntry,
        token: pyfuse3.ReaddirToken,
    ) -> bool:
        """Add one entry to the reply; False if it does not fit."""
        inodes = self._inodes
        if found.name in (b".", b".."):
            dots = _fill(inodes.attributes(directory), directory.ino)
            if found.name == b".." and directory.parent is not None:
                dots.st_ino = InodeT(directory.parent.ino)
            # The kernel uses only the number of these two: they count as no lookup.
            return pyfuse3.readdir_reply(token, found.name, dots, found.offset)
        try:
            attributes = os.stat(
                found.name,
                dir_fd=inodes.dir_fd(directory),
                follow_symlinks=False,
            )
            node = inodes.node_at(directory, found.name, attributes)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.EXDEV):
                # It was removed meanwhile, or something else is mounted on it.
                return True
            raise
        entry = inodes.entry(node, attributes)
        if pyfuse3.readdir_reply(token, found.name, _entry(entry), found.offset):
            return True
        inodes.forget(node.ino, 1)
        return False

    @_answered
    async def releasedir(self, fh: FileHandleT) -> None:
        # The channel does not do this, because it would overtake a readdir that is
        # being relayed.
        self._namespace.directories.release(fh)

    @_answered
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Do nothing: there is nothing to write back."""

    # --- extended attributes -----------------------------------------------------

    def _is_virtual(self, inode: InodeT, name: bytes) -> bool:
        return inode == ROOT_ID and name in self._virtual

    @_answered
    async def getxattr(self, inode: InodeT, name: bytes, ctx: RequestContext) -> bytes:
        if self._is_virtual(inode, name):
            return await self._virtual[name]()
        if name.startswith(_REFUSED_XATTRS):
            raise os_error(errno.EOPNOTSUPP)
        with self._inodes.magic_path(self._inodes[inode]) as path:
            return os.getxattr(path, name)

    @_answered
    async def setxattr(
        self, inode: InodeT, name: bytes, value: bytes, ctx: RequestContext
    ) -> None:
        if self._is_virtual(inode, name):
            raise os_error(errno.EPERM)
        if name.startswith(_REFUSED_XATTRS):
            raise os_error(errno.EOPNOTSUPP)
        await self._namespace.wait_idle(self._inodes[inode])
        self._namespace.headroom.take(len(value))
        with self._inodes.magic_path(self._inodes[inode]) as path:
            os.setxattr(path, name, value)

    @_answered
    async def removexattr(
        self, inode: InodeT, name: bytes, ctx: RequestContext
    ) -> None:
        if self._is_virtual(inode, name):
            raise os_error(errno.EPERM)
        await self._namespace.wait_idle(self._inodes[inode])
        with self._inodes.magic_path(self._inodes[inode]) as path:
            os.removexattr(path, name)

    @_answered
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[bytes]:
        with self._inodes.magic_path(self._inodes[inode]) as path:
            names = [os.fsencode(name) for name in os.listxattr(path)]
        names = [name for name in names if not name.startswith(_REFUSED_XATTRS)]
        trusted = [name for name in names if name.startswith(b"trusted.")]
        if trusted and not Caller(ctx.pid).may_see_trusted():
            names = [name for name in names if name not in trusted]
        return [*self._virtual, *names] if inode == ROOT_ID else names

    # --- the file system ---------------------------------------------------------

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        found = os.fstatvfs(self._inodes.backing.root)
        filled = StatvfsData()
        filled.f_bsize = found.f_bsize
        filled.f_frsize = found.f_frsize
        filled.f_blocks = found.f_blocks
        filled.f_bfree = found.f_bfree
        filled.f_bavail = found.f_bavail
        # A hugetlbfs without a limit has -1 here.
        filled.f_files = max(found.f_files, 0)
        filled.f_ffree = max(found.f_ffree, 0)
        filled.f_favail = max(found.f_favail, 0)
        filled.f_namemax = found.f_namemax
        return filled
