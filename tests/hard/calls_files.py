"""Calls on files: opening, allocating, locking, watching, reading; pipes, sockets."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import select
import signal
import stat
import struct
from typing import TYPE_CHECKING

from tests.hard import kernel
from tests.hard.calls import KINDS, Place, call, shape
from tests.mount import raw
from tests.mount.support import outcome

if TYPE_CHECKING:
    from collections.abc import Callable

# --- opening --------------------------------------------------------------------------


@call("open {kind} {flags}", kind=KINDS, flags=(
    "O_RDONLY", "O_WRONLY", "O_RDWR", "O_PATH", "O_RDONLY|O_DIRECTORY",
    "O_RDONLY|O_TRUNC", "O_WRONLY|O_APPEND", "O_RDWR|O_DIRECT", "O_RDONLY|O_NOATIME",
    "O_RDWR|O_SYNC", "O_CREAT|O_DIRECTORY", "O_CREAT|O_NOFOLLOW",
))  # fmt: skip
def _(at: Place, kind: str, flags: str) -> object:
    number = 0
    for flag in flags.split("|"):
        number |= getattr(os, flag)
    # Otherwise open(2) of a FIFO waits for a peer.
    fd = os.open(at.make(kind), number | os.O_NONBLOCK, 0o600)
    mask = os.O_ACCMODE | os.O_APPEND | os.O_DIRECTORY | os.O_PATH
    return [fcntl.fcntl(fd, fcntl.F_GETFL) & mask, stat.S_IFMT(os.fstat(fd).st_mode)]


@call("open somebody's {what} {flags}", what=(
    "secret", "public", "common", "closed/x",
), flags=("O_RDONLY", "O_WRONLY", "O_RDONLY|O_TRUNC", "O_RDONLY|O_NOATIME",
))  # fmt: skip
def _(at: Place, what: str, flags: str) -> object:
    number = 0
    for flag in flags.split("|"):
        number |= getattr(os, flag)
    os.close(os.open(f"{at.theirs}/{what}", number))
    return "opened"


@call("F_SETFL {flag}", flag=("O_APPEND", "O_NONBLOCK", "O_DIRECT", "O_NOATIME"))
def _(at: Place, flag: str) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETFL, getattr(os, flag))
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & getattr(os, flag))


@call("reopen by /proc: {flags}", flags=("O_RDONLY", "O_RDWR", "O_PATH"))
def _(at: Place, flags: str) -> object:
    fd = os.open(at.make("file"), os.O_RDONLY)
    os.unlink(at.path())
    again = os.open(f"/proc/self/fd/{fd}", getattr(os, flags))
    return os.path.samestat(os.fstat(fd), os.fstat(again))


# --- sizes and allocation, of an empty file ------------------------------------------


@call("ftruncate to {size} pages", size=(0, 1, 1000, (1 << 51) - 1, -1))
def _(at: Place, size: int) -> object:
    os.ftruncate(os.open(at.make("file"), os.O_RDWR), size * 4096)
    return shape(at.path())


@call("ftruncate to {size} bytes", size=(1, 4095, 5000))
def _(at: Place, size: int) -> object:
    os.ftruncate(os.open(at.make("file"), os.O_RDWR), size)
    return shape(at.path())


@call("ftruncate twice")
def _(at: Place) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    os.ftruncate(fd, 8192)
    os.ftruncate(fd, 4096)
    return shape(at.path())


@call("truncate {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    os.truncate(at.make(kind), 8192)
    return shape(at.path())


@call("fallocate mode {mode} of {length} at {offset}", mode=(0, 1, 2, 3, 8, 16, 32, 64),
      offset=(0, 4096, -1), length=(4096, 8192, 0))  # fmt: skip
def _(at: Place, mode: int, offset: int, length: int) -> object:
    raw.fallocate(os.open(at.make("file"), os.O_RDWR), mode, offset, length)
    return shape(at.path())


@call("fallocate an fd {flags}", flags=("O_RDONLY", "O_PATH", "O_WRONLY"))
def _(at: Place, flags: str) -> object:
    raw.fallocate(os.open(at.make("file"), getattr(os, flags)), 0, 0, 4096)
    return shape(at.path())


@call("fallocate past the limit of the file system")
def _(at: Place) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    result = outcome(raw.fallocate, fd, 0, 0, 1 << 30)
    return [result, shape(at.path())]


@call("fallocate past RLIMIT_FSIZE")
def _(at: Place) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        return [outcome(raw.fallocate, fd, 0, 0, 8192), outcome(os.ftruncate, fd, 8192)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@call("SEEK_SET, SEEK_CUR and SEEK_END")
def _(at: Place) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    raw.fallocate(fd, 0, 0, 8192)
    return [
        os.lseek(fd, 5, os.SEEK_SET),
        os.lseek(fd, 5, os.SEEK_CUR),
        os.lseek(fd, -5, os.SEEK_END),
        outcome(os.lseek, fd, -1, os.SEEK_SET),
    ]


# --- synchronising --------------------------------------------------------------------


@call("{how} of a {kind}", how=("fsync", "fdatasync", "syncfs", "posix_fadvise"),
      kind=("file", "directory"))  # fmt: skip
def _(at: Place, how: str, kind: str) -> object:
    fd = os.open(at.make(kind), os.O_RDONLY)
    calls: dict[str, Callable[[], object]] = {
        "fsync": lambda: os.fsync(fd),
        "fdatasync": lambda: os.fdatasync(fd),
        "syncfs": lambda: kernel.syncfs(fd),
        "posix_fadvise": lambda: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED),
    }
    return outcome(calls[how])


# --- locks ----------------------------------------------------------------------------


@call("flock {first} then {second}", first=("LOCK_SH", "LOCK_EX"),
      second=("LOCK_SH", "LOCK_EX", "LOCK_UN"))  # fmt: skip
def _(at: Place, first: str, second: str) -> object:
    one = os.open(at.make("file"), os.O_RDWR)
    two = os.open(at.path(), os.O_RDWR)
    fcntl.flock(one, getattr(fcntl, first))
    return outcome(fcntl.flock, two, getattr(fcntl, second) | fcntl.LOCK_NB)


_flock = struct.Struct("=hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid


def _ofd(fd: int, command: int, kind: int, start: int) -> int:
    request = _flock.pack(kind, os.SEEK_SET, start, 10, 0)
    answer = fcntl.fcntl(fd, command, request)
    return int(_flock.unpack(answer)[0])


@call("OFD locks {first} then {second}, {apart} apart", first=("F_RDLCK", "F_WRLCK"),
      second=("F_RDLCK", "F_WRLCK"), apart=(0, 100))  # fmt: skip
def _(at: Place, first: str, second: str, apart: int) -> object:
    one = os.open(at.make("file"), os.O_RDWR)
    two = os.open(at.path(), os.O_RDWR)
    setlk, getlk = fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK
    _ofd(one, setlk, getattr(fcntl, first), 0)
    kind = getattr(fcntl, second)
    return [_ofd(two, getlk, kind, apart), outcome(_ofd, two, setlk, kind, apart)]


@call("lockf and F_GETLK in a child")
def _(at: Place) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 10)
    child = os.fork()
    if child == 0:
        other = os.open(at.path(), os.O_RDWR)
        result = outcome(fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
        os._exit(0 if result in ("EAGAIN", "EACCES") else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@call("lease {kind} with {opens} opens", kind=("F_RDLCK", "F_WRLCK", "F_UNLCK"),
      opens=(1, 2))  # fmt: skip
def _(at: Place, kind: str, opens: int) -> object:
    flags = os.O_RDONLY if kind == "F_RDLCK" else os.O_RDWR
    fds = [os.open(at.make("file"), flags)]
    fds += [os.open(at.path(), os.O_RDONLY) for _ in range(opens - 1)]
    fcntl.fcntl(fds[0], fcntl.F_SETLEASE, getattr(fcntl, kind))
    return fcntl.fcntl(fds[0], fcntl.F_GETLEASE)


# --- watching -------------------------------------------------------------------------


@call("inotify of {how}", how=(
    "create", "mkdir", "unlink", "rename", "link", "chmod", "open", "truncate",
    "symlink", "rmdir", "setxattr", "fallocate",
))  # fmt: skip
def _(at: Place, how: str) -> object:
    at.make("file")
    at.make("directory", "d")
    fd = kernel.inotify(at.own, 0xFFF)
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: os.close(os.open(at.path("y"), os.O_CREAT | os.O_RDWR)),
        "mkdir": lambda: os.mkdir(at.path("y")),
        "unlink": lambda: os.unlink(at.path()),
        "rename": lambda: os.rename(at.path(), at.path("y")),
        "link": lambda: os.link(at.path(), at.path("y")),
        "chmod": lambda: os.chmod(at.path(), 0o600),
        "open": lambda: os.close(os.open(at.path(), os.O_RDONLY)),
        "truncate": lambda: os.truncate(at.path(), 4096),
        "symlink": lambda: os.symlink("z", at.path("y")),
        "rmdir": lambda: os.rmdir(at.path("d")),
        "setxattr": lambda: os.setxattr(at.path(), "trusted.a", b"1"),
        "fallocate": lambda: raw.fallocate(os.open(at.path(), 2), 0, 0, 4096),
    }
    result = outcome(calls[how])
    return [result, [[f"{mask:#x}", name] for mask, name in kernel.events(fd)]]


@call("poll a {kind}", kind=("file", "directory"))
def _(at: Place, kind: str) -> object:
    poller = select.poll()
    fd = os.open(at.make(kind), os.O_RDONLY)
    poller.register(fd, select.POLLIN | select.POLLOUT)
    return [events for _, events in poller.poll(0)]


@call("epoll_ctl a {kind}", kind=("file", "directory"))
def _(at: Place, kind: str) -> object:
    with select.epoll() as poller:
        poller.register(os.open(at.make(kind), os.O_RDONLY))
    return "added"


# --- file handles ---------------------------------------------------------------------


@call("name_to_handle_at {kind}", kind=("file", "directory", "absent"))
def _(at: Place, kind: str) -> object:
    return len(kernel.file_handle(at.make(kind))) > 0


@call("open_by_handle_at {kind}", kind=("file", "directory"))
def _(at: Place, kind: str) -> object:
    handle = kernel.file_handle(at.make(kind))
    directory = os.open(at.own, os.O_RDONLY)
    fd = kernel.open_by_handle(directory, handle, os.O_RDONLY)
    return os.path.samestat(os.fstat(fd), os.stat(at.path()))


# --- pipes and sockets in the file system ---------------------------------------------


@call("a FIFO carries bytes")
def _(at: Place) -> object:
    fd = os.open(at.make("fifo"), os.O_RDWR | os.O_NONBLOCK)
    os.write(fd, b"abc")
    return os.read(fd, 10).decode()


@call("a FIFO without a reader")
def _(at: Place) -> object:
    return os.open(at.make("fifo"), os.O_WRONLY | os.O_NONBLOCK) >= 0


@call("execute a file of mode {mode:o}", mode=(0o644, 0o755))
def _(at: Place, mode: int) -> object:
    os.chmod(at.make("file"), mode)
    child = os.fork()
    if child == 0:
        try:
            os.execv(at.path(), ["x"])
        except OSError as exc:
            os._exit(exc.errno or 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- contents: what the rules forbid --------------------------------------------------


@call("{how} 10 bytes", how=("read", "write", "pread", "pwrite", "readv", "writev"))
def _(at: Place, how: str) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    raw.fallocate(fd, 0, 0, 4096)
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: len(os.read(fd, 10)),
        "write": lambda: os.write(fd, b"x" * 10),
        "pread": lambda: len(os.pread(fd, 10, 0)),
        "pwrite": lambda: os.pwrite(fd, b"x" * 10, 0),
        "readv": lambda: os.readv(fd, [bytearray(10)]),
        "writev": lambda: os.writev(fd, [b"x" * 10]),
    }
    return calls[how]()


@call("{how} no bytes", how=("read", "write"))
def _(at: Place, how: str) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    return len(os.read(fd, 0)) if how == "read" else os.write(fd, b"")


@call("mmap {how}", how=("MAP_SHARED", "MAP_PRIVATE"))
def _(at: Place, how: str) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    raw.fallocate(fd, 0, 0, 4096)
    return len(mmap.mmap(fd, 4096, getattr(mmap, how)))


@call("SEEK_DATA and SEEK_HOLE")
def _(at: Place) -> object:
    fd = os.open(at.make("file"), os.O_RDWR)
    raw.fallocate(fd, 0, 0, 4096)
    return [os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)]


@call("F_ADD_SEALS")
def _(at: Place) -> object:
    return fcntl.fcntl(os.open(at.make("file"), os.O_RDWR), fcntl.F_ADD_SEALS, 0)


@call("ioctl {name}", name=("FS_IOC_GETFLAGS", "FIONREAD", "FICLONE", "nonsense"))
def _(at: Place, name: str) -> object:
    numbers = {"FS_IOC_GETFLAGS": 0x80086601, "FIONREAD": 0x541B,
               "FICLONE": 0x40049409, "nonsense": 0x4004FFFF}  # fmt: skip
    fd = os.open(at.make("file"), os.O_RDWR)
    fcntl.ioctl(fd, numbers[name], bytearray(8))
    return "done"


@call("copy_file_range")
def _(at: Place) -> object:
    one = os.open(at.make("file"), os.O_RDWR)
    two = os.open(at.make("file", "y"), os.O_RDWR)
    raw.fallocate(one, 0, 0, 4096)
    return os.copy_file_range(one, two, 4096)
