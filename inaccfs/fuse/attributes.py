"""SETATTR: sets attributes, and removes set-ID bits if the kernel asks for that.

With HANDLE_KILLPRIV_V2 the kernel leaves the removal of the set-ID bits to us. It asks
for it by FATTR_KILL_SUIDGID with a size or an owner, by FUSE_OPEN_KILL_SUIDGID with
O_TRUNC, and by a SETATTR of nothing at all, which it sends before a fallocate(2) and
for a chown(2) to -1, -1.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from inaccfs.errnos import os_error
from inaccfs.fuse import wire
from inaccfs.fuse.caller import Caller
from inaccfs.syscalls import UTIME_NOW, UTIME_OMIT

if TYPE_CHECKING:
    from inaccfs.fuse.namespace import Namespace
    from inaccfs.fuse.nodes import Node
    from inaccfs.fuse.wire import Setattr
    from inaccfs.syscalls import Time

_SETS: Final = (
    wire.FATTR_MODE
    | wire.FATTR_UID
    | wire.FATTR_GID
    | wire.FATTR_SIZE
    | wire.FATTR_ATIME
    | wire.FATTR_MTIME
)


async def change(namespace: Namespace, node: Node, wanted: Setattr, pid: int) -> None:
    """SETATTR, by process *pid*.

    Raises:
        OSError: the rules or the backing refuse it.
    """
    valid = wanted.valid
    nothing = not valid & _SETS
    await namespace.wait_idle(node)
    if valid & wire.FATTR_SIZE:
        # Do this first: if it is refused, nothing else may have changed.
        with namespace.opens.hold(node) as file:
            by_path = not valid & wire.FATTR_FH
            await file.set_size(wanted.size, by_path=by_path, who=pid)
        await namespace.wait_idle(node)
    # This depends on the group, so it comes before a change of the group.
    mode = None
    if nothing or valid & wire.FATTR_KILL_SUIDGID:
        mode = _without_set_ids(namespace, node, pid, only_owner=nothing)
    if nothing or valid & (wire.FATTR_UID | wire.FATTR_GID):
        # Do this before setting the mode: chown(2) removes the set-ID bits. A chown(2)
        # to -1, -1 does, too, and updates ctime.
        namespace.chown(
            node,
            wanted.uid if valid & wire.FATTR_UID else -1,
            wanted.gid if valid & wire.FATTR_GID else -1,
        )
    if valid & wire.FATTR_MODE:
        mode = wanted.mode
    if mode is not None:
        namespace.chmod(node, mode)
    if valid & (wire.FATTR_ATIME | wire.FATTR_MTIME):
        namespace.utime(node, *_times(wanted))


def drop_set_ids(namespace: Namespace, node: Node, pid: int) -> None:
    """Remove the set-ID bits that a truncation by process *pid* removes."""
    mode = _without_set_ids(namespace, node, pid)
    if mode is not None:
        namespace.chmod(node, mode)


def _without_set_ids(
    namespace: Namespace, node: Node, pid: int, *, only_owner: bool = False
) -> int | None:
    """The mode without the set-ID bits to remove; None if there are none.

    setattr_should_drop_suidgid() of fs/attr.c: set-group-ID without group execution
    means mandatory locking, and stays if the caller may set it.

    Raises:
        OSError: EPERM, with *only_owner*: the chown(2) of a process that is not like
            the owner. For an open file it may be a fallocate(2) instead, which every
            writer may do.
    """
    if node.is_dir:
        return None
    attributes = namespace.inodes.attributes(node)
    mode = stat.S_IMODE(attributes.st_mode)
    if not mode & (stat.S_ISUID | stat.S_ISGID):
        return None
    caller = Caller(pid)
    left = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or not caller.may_set_group(attributes.st_gid):
        left &= ~stat.S_ISGID
    if left == mode:
        return None
    if only_owner and not node.opens and not caller.is_like_owner(attributes.st_uid):
        raise os_error(errno.EPERM)
    return left


def _times(wanted: Setattr) -> tuple[Time, Time]:
    valid = wanted.valid
    atime = wanted.atime, wanted.atimensec
    mtime = wanted.mtime, wanted.mtimensec
    if not valid & wire.FATTR_ATIME:
        atime = 0, UTIME_OMIT
    elif valid & wire.FATTR_ATIME_NOW:
        atime = 0, UTIME_NOW
    if not valid & wire.FATTR_MTIME:
        mtime = 0, UTIME_OMIT
    elif valid & wire.FATTR_MTIME_NOW:
        mtime = 0, UTIME_NOW
    return atime, mtime
