"""A private tmpfs for a user without privileges.

A user may mount a tmpfs in a user namespace of their own. Setting one up means writing
/proc/PID/uid_map, which only a dumpable process may do. But any process of the same
user can enter a dumpable process (ptrace(2), /proc/PID), and keeps its access later.

So there are two children. The first is dumpable: it creates the namespace and holds no
fd of the daemon. The second has never been dumpable: it enters the namespace and
mounts. It stays undumpable, because commit_creds() in kernel/cred.c sees no gain of
privileges in entering a namespace that one's own user has made; and ptrace(2) checks
its tracer against the user namespace in which the daemon was executed.

The tmpfs lives as long as the fd. The daemon itself stays in its own namespaces, so
that fusermount3 finds the mountpoint when it is time to unmount.
"""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from inaccfs import mountcalls, syscalls
from inaccfs.children import starting
from inaccfs.errnos import os_error
from inaccfs.errors import BackingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def detached_in_user_namespace(options: Mapping[str, str], flags: int = 0) -> int:
    """Mount a tmpfs that no path leads to; return an O_PATH fd of its root.

    *options* and *flags* are those of `mountcalls.detached_tmpfs`. The caller must be
    undumpable and have a single thread.

    Raises:
        BackingError: no process can be started.
        OSError: user namespaces are not allowed, or the kernel refused the options.
    """
    identity = os.geteuid(), os.getegid()
    namespace = _from_child(partial(_make_namespace, *identity), holds_nothing=True)
    try:
        return _from_child(partial(_mount_in, namespace, options, flags))
    finally:
        os.close(namespace)


def _make_namespace(uid: int, gid: int) -> int:
    """Runs in the dumpable child: a user namespace that maps one user to itself."""
    syscalls.set_dumpable(True)
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    return os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)


def _mount_in(namespace: int, options: Mapping[str, str], flags: int) -> int:
    """Runs in the undumpable child: mount a tmpfs in that user namespace."""
    syscalls.setns(namespace, syscalls.CLONE_NEWUSER)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    return mountcalls.detached_tmpfs(dict(options), flags)


def _from_child(work: Callable[[], int], *, holds_nothing: bool = False) -> int:
    """Run *work* in a child; return the fd it returns, or raise the error it raises.

    With *holds_nothing* the child first closes every other fd that it has inherited.
    """
    # Without a process we must not fall back to a backing that others can reach.
    start = partial(starting, "a process that makes the private tmpfs", BackingError)
    with start():
        ours, theirs = socket.socketpair()
    with ours, theirs:
        with start():
            child = os.fork()
        if child == 0:
            _run(work, theirs, holds_nothing=holds_nothing)
        # So that recvmsg(2) ends when the child dies without an answer.
        theirs.close()
        data, fds, _, _ = socket.recv_fds(ours, 1, 1)
        os.waitpid(child, 0)
    if fds:
        return fds[0]
    with start():
        raise os_error(data[0] if data else errno.EIO)


def _run(
    work: Callable[[], int], answer: socket.socket, *, holds_nothing: bool
) -> NoReturn:
    status = 1
    try:
        if holds_nothing:
            os.closerange(3, answer.fileno())
            os.closerange(answer.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        socket.send_fds(answer, [b"\0"], [work()])
        status = 0
    except OSError as exc:
        answer.send(bytes([exc.errno or errno.EIO]))
    finally:
        os._exit(status)
