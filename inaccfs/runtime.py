"""What other processes need to know of a daemon: its socket, its log, and READY."""

from __future__ import annotations

import os
import socket
import stat
import string
from pathlib import Path
from typing import Final

from inaccfs.errors import InaccfsError, MountError

READY: Final = b"ready\n"
"""What a daemon writes to --ready-fd when its mount can be used."""

# sizeof(sockaddr_un.sun_path), less the NUL that ends it. See unix(7).
_SOCKET_PATH_BYTES: Final = 107

_SOCKET: Final = ".sock"

_ROOTS: Final = "/run/inaccfs"

_PLAIN: Final = frozenset(string.ascii_letters + string.digits + ":_.")


def escape(path: str) -> str:
    """*path* as one name, as systemd-escape --path makes it.

    >>> escape("/mnt/guest memory")
    'mnt-guest\\\\x20memory'
    """
    parts = [part for part in path.split("/") if part]
    if not parts:
        return "-"
    name = "-".join(
        "".join(
            char
            if char in _PLAIN
            else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
            for char in part
        )
        for part in parts
    )
    return f"\\x2e{name[1:]}" if name.startswith(".") else name


def short_name(path: str, size: int) -> str:
    """`escape(path)` if it has at most *size* bytes; otherwise a digest and its end.

    The end of a path says more than its start. The digest distinguishes paths with the
    same end.
    """
    name = escape(path)
    if len(name) <= size:
        return name
    # Imported here because few paths are as long, and it takes 2 ms.
    import hashlib

    digest = hashlib.blake2b(os.fsencode(path), digest_size=6).hexdigest()
    end = size - len(digest) - 1
    return f"{digest}-{name[-end:]}" if end > 0 else digest


def directory() -> str:
    """The directory of sockets and logs: /run/inaccfs, or the user's own."""
    if os.geteuid() == 0 and _is_ours(_ROOTS):
        return _ROOTS
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # All users can write to /tmp: make_directory() refuses another user's directory.
    # XDG_RUNTIME_DIR must be absolute, says its specification, or be ignored.
    return (
        f"{runtime}/inaccfs"
        if os.path.isabs(runtime)
        else f"/tmp/inaccfs-{os.geteuid()}"
    )


def _is_ours(path: str) -> bool:
    """Whether *path* is a directory that we may write to, or that we can make.

    Root of a user namespace usually cannot write to /run.
    """
    try:
        owner = os.lstat(path).st_uid
    except OSError:
        path = os.path.dirname(path)
        return os.access(path, os.W_OK | os.X_OK, effective_ids=True)
    return owner == os.geteuid() and os.access(path, os.W_OK, effective_ids=True)


def make_directory() -> str:
    """`directory`, which then exists with mode 0700 and belongs to the caller.

    Raises:
        MountError: it cannot be made so.
    """
    path = directory()
    # Of the directories above, too, none may be open to others, or closed to us.
    umask = os.umask(0o077)
    try:
        os.makedirs(path, exist_ok=True)
        found = os.lstat(path)
    except OSError as exc:
        raise MountError(
            f"cannot make {path}: {exc.strerror}; name another place with --control "
            "and --log"
        ) from exc
    finally:
        os.umask(umask)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise MountError(
            f"{path} is not a directory of yours: remove it, or set XDG_RUNTIME_DIR"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(path, 0o700)
    return path


def temporary_directory(prefix: str, kind: type[InaccfsError] = MountError) -> str:
    """Make a directory of mode 0700, whatever the umask; return its path without links.

    Raises:
        InaccfsError: it cannot be made; of the *kind*.
    """
    # Imported here because the daemon does not need it.
    import tempfile

    try:
        path = os.path.realpath(tempfile.mkdtemp(prefix=prefix))
        os.chmod(path, 0o700)
    except OSError as exc:
        raise kind(
            f"cannot make a temporary directory: {exc.strerror}: set TMPDIR to a "
            "directory of yours"
        ) from exc
    return path


def control_path(mountpoint: str, chosen: str | None) -> str:
    """The path of the control socket of *mountpoint*: *chosen*, or the default.

    Raises:
        MountError: *chosen*, or the directory of sockets, is too long for a socket; or
            *chosen* is below the mountpoint.
    """
    if chosen is not None:
        path = os.path.abspath(chosen)
        if path.startswith(f"{mountpoint.rstrip('/')}/"):
            raise MountError(
                f"control socket {path}: the mount would cover it: name another place "
                "with --control"
            )
    else:
        start = f"{directory()}/"
        room = _SOCKET_PATH_BYTES - len(os.fsencode(start)) - len(_SOCKET)
        path = f"{start}{short_name(mountpoint, room)}{_SOCKET}"
    length = len(os.fsencode(path))
    if length > _SOCKET_PATH_BYTES:
        raise MountError(
            f"control socket {path} has {length} bytes, a socket's path can have "
            f"{_SOCKET_PATH_BYTES}: name a shorter one with --control"
        )
    return path


def remove_dead_socket(path: str) -> bool:
    """Remove the control socket of a daemon that was killed, if there is one.

    Returns false if something else is at *path*: a file, or a socket on which a process
    may listen.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # connect(2) would wait for a stopped daemon; this way it is EAGAIN.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return True
        except ConnectionRefusedError:
            # Also the error for a file.
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
                return True
        except OSError:
            # A socket of another type, one that refuses us, or a full backlog.
            pass
    return False


def log_path(mountpoint: str) -> str:
    """The path of the log of a daemon in the background."""
    # A name can have 255 bytes (NAME_MAX).
    return os.path.join(directory(), f"{short_name(mountpoint, 200)}.log")


def fallback_name(mountpoint: str) -> str:
    """The name of the directory that replaces a private tmpfs."""
    return f"inaccfs-{os.geteuid()}-{short_name(mountpoint, 150)}"


def environment() -> dict[str, str]:
    """An environment in which a child imports the same package as this process."""
    here = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    found = {
        **os.environ,
        "PYTHONPATH": f"{here}{os.pathsep}{inherited}" if inherited else here,
    }
    # The process that starts a daemon notifies the service manager itself.
    found.pop("NOTIFY_SOCKET", None)
    return found
