"""A process without permission tries to get in; prints the results as JSON.

    stranger UID yes|no MOUNTPOINT PID SOCKET|- FILE...

With "yes" it is root in a new user namespace; with "-" it only tries to reach into the
daemon.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

from tests.hard import plain

if TYPE_CHECKING:
    from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNS: Final = 0x00020000
_PR_SET_DUMPABLE: Final = 4
_PTRACE_SEIZE: Final = 0x4206
_PIDFD_GETFD: Final = 438
_FILE: Final[dict[str, object]] = {"file": "/file"}
_COMMANDS: Final[dict[str, dict[str, object]]] = {
    "qmp_capabilities": {},
    "query-version": {},
    "query-status": {},
    "query-files": {},
    "query-pins": {},
    "get-pfn": {**_FILE, "offset": 0},
    "put-pfn": {**_FILE, "pfn": 1},
    "query-file": _FILE,
    "register-notifier": _FILE,
    "get-memory": _FILE,
    "quit": {},
}


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _become(uid: int, namespace: bool) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    if namespace:
        # A process that has changed its user may not write its own maps.
        _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        _checked(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {uid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def _on_the_mount(point: str) -> dict[str, Callable[[], object]]:
    return {
        "list": lambda: os.listdir(point),
        "stat a file": lambda: os.stat(f"{point}/file"),
        "open a file": lambda: os.open(f"{point}/file", os.O_RDONLY),
        "make a file": lambda: os.open(f"{point}/new", os.O_CREAT | os.O_RDWR),
        "unlink": lambda: os.unlink(f"{point}/file"),
        "read the status": lambda: os.getxattr(point, "user.inaccfs.status"),
        "unmount": lambda: _unmount(point),
    }


def _unmount(point: str) -> None:
    try:
        _checked(_libc.umount2(os.fsencode(point), 2))
    except OSError as exc:
        # Inherited mounts are locked in the namespace; see mount_namespaces(7).
        raise PermissionError(1, "locked") if exc.errno == 22 else exc from None


def _on_the_daemon(pid: int) -> dict[str, Callable[[], object]]:
    proc = f"/proc/{pid}"
    return {
        "its fds": lambda: [os.open(f"{proc}/fd/{fd}", 0) for fd in range(20)],
        "its root": lambda: os.listdir(f"{proc}/root/"),
        "its working directory": lambda: os.readlink(f"{proc}/cwd"),
        "its memory": lambda: os.open(f"{proc}/mem", os.O_RDONLY),
        "its mappings": lambda: os.open(f"{proc}/maps", os.O_RDONLY),
        "its mapped files": lambda: os.listdir(f"{proc}/map_files"),
        "its environment": lambda: os.open(f"{proc}/environ", os.O_RDONLY),
        "trace it": lambda: _checked(_libc.ptrace(_PTRACE_SEIZE, pid, 0, 0)),
        "take an fd of it": lambda: _take_fd(pid),
    }


def _take_fd(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    for fd in range(3, 40):
        # Any of the daemon's fds would be enough.
        try:
            _checked(_libc.syscall(_PIDFD_GETFD, pidfd, fd, 0))
        except OSError as exc:
            refusal = exc
        else:
            return
    raise refusal


def _say(control: str) -> dict[str, str]:
    """The reply to each command, or why there is none."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        try:
            connection.connect(control)
        except OSError as exc:
            return {"connect": plain.name_of(exc)}
        with connection.makefile("rwb") as stream:
            if not stream.readline():
                return {"connect": "hung up"}
            replies = {"connect": "ok"}
            for command, arguments in _COMMANDS.items():
                message = {"execute": command, "arguments": arguments}
                stream.write(json.dumps(message).encode() + b"\n")
                stream.flush()
                answer = json.loads(stream.readline())
                error = answer.get("error", {}).get("desc", "ok")
                replies[command] = error.partition(":")[0]
            return replies


def _main(
    uid: str, namespace: str, point: str, pid: str, control: str, *files: str
) -> None:
    _become(int(uid), namespace == "yes")
    attempts = _on_the_daemon(int(pid))
    said = {}
    if control != "-":
        attempts |= _on_the_mount(point)
        attempts["end it"] = lambda: os.kill(int(pid), signal.SIGTERM)
        said = _say(control)
    result = {name: plain.outcome(attempt) for name, attempt in attempts.items()}
    result |= {f"read {path}": plain.outcome(os.open, path, 0) for path in files}
    json.dump({"attempts": result, "control": said}, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
