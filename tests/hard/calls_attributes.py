"""Calls on attributes: modes and owners, times, extended attributes."""

from __future__ import annotations

import os
import stat
import struct
from typing import TYPE_CHECKING

from tests.hard import kernel
from tests.hard.calls import KINDS, Place, call, moved, shape
from tests.mount import raw
from tests.mount.support import outcome

if TYPE_CHECKING:
    from collections.abc import Callable

# --- stat -----------------------------------------------------------------------------


@call("lstat {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    return shape(at.make(kind))


@call("st_blksize of {kind}", kind=("file", "directory", "symlink", "fifo"))
def _(at: Place, kind: str) -> object:
    return os.lstat(at.make(kind)).st_blksize


@call("st_ino is that of readdir: {kind}", kind=KINDS)
def _(at: Place, kind: str) -> object:
    at.make(kind)
    return [
        os.lstat(at.path(entry.name)).st_ino == entry.inode()
        for entry in os.scandir(at.own)
    ]


@call("st_dev is one for all")
def _(at: Place) -> object:
    kinds = [at.make(kind, kind) for kind in KINDS if kind != "absent"]
    return len({os.lstat(path).st_dev for path in (at.own, *kinds)})


@call("times of {kind} when it is new", kind=("file", "directory", "symlink", "fifo"))
def _(at: Place, kind: str) -> object:
    found = os.lstat(at.make(kind))
    return [found.st_atime_ns == found.st_mtime_ns == found.st_ctime_ns]


@call("statx of {kind}: mask and attributes", kind=("file", "directory", "symlink"))
def _(at: Place, kind: str) -> object:
    mask, attributes, _ = kernel.statx(at.make(kind))
    return [f"{mask & 0xFFF:#x}", f"{attributes & 0x7F:#x}"]


@call("birth time of {kind}", kind=("file", "directory", "symlink"))
def _(at: Place, kind: str) -> object:
    mask, _, born = kernel.statx(at.make(kind))
    close = abs(born - os.lstat(at.path()).st_ctime_ns) < 10**9
    os.utime(at.path(), ns=(0, 0), follow_symlinks=False)
    return [bool(mask & kernel.STATX_BTIME), close, kernel.statx(at.path())[2] == born]


@call("statvfs")
def _(at: Place) -> object:
    found = os.statvfs(at.own)
    return [found.f_bsize, found.f_frsize, found.f_blocks, found.f_namemax]


@call("statvfs counts pages and inodes")
def _(at: Place) -> object:
    before = os.statvfs(at.own)
    fd = os.open(at.make("file"), os.O_RDWR)
    raw.fallocate(fd, 0, 0, 10 * 4096)
    after = os.statvfs(at.own)
    return [before.f_bfree - after.f_bfree, before.f_ffree - after.f_ffree]


@call("access {kind} {how}", kind=KINDS, how=("F_OK", "R_OK", "W_OK", "X_OK"))
def _(at: Place, kind: str, how: str) -> object:
    return os.access(at.make(kind), getattr(os, how))


@call("faccessat {how} of somebody's {what}", how=("R_OK", "W_OK", "X_OK"),
      what=("secret", "public", "common", "closed", "open", "closed/x"))  # fmt: skip
def _(at: Place, how: str, what: str) -> object:
    path = f"{at.theirs}/{what}"
    return [
        os.access(path, getattr(os, how), effective_ids=real) for real in (False, True)
    ]


# --- mode and owner -------------------------------------------------------------------


@call("chmod {kind} to {mode:o}", kind=("file", "directory", "fifo", "absent"),
      mode=(0, 0o777, 0o1000, 0o2010, 0o2000, 0o4711, 0o7777))  # fmt: skip
def _(at: Place, kind: str, mode: int) -> object:
    os.chmod(at.make(kind), mode)
    return shape(at.path())


@call("chmod follows a symlink")
def _(at: Place) -> object:
    os.chmod(at.make("symlink"), 0o600)
    return [shape(at.path()), shape(at.path("x.target"))]


@call("chmod somebody's file")
def _(at: Place) -> object:
    os.chmod(f"{at.theirs}/common", 0o600)
    return shape(f"{at.theirs}/common")


@call("chmod 2755 in a group that is not one's own")
def _(at: Place) -> object:
    path = f"{at.theirs}/setgid/new"
    os.mknod(path)
    os.chmod(path, 0o2755)
    return stat.filemode(os.stat(path).st_mode)


@call("fchmod, fchown and futimens of an fd: {flags}", flags=("O_RDONLY", "O_PATH"))
def _(at: Place, flags: str) -> object:
    fd = os.open(at.make("file"), getattr(os, flags))
    return [
        outcome(os.fchmod, fd, 0o640),
        outcome(os.fchown, fd, -1, -1),
        outcome(os.utime, fd, ns=(0, 0)),
        shape(at.path()),
    ]


@call("chown {kind} to {uid}:{gid}", kind=("file", "directory", "symlink"), uid=(-1, 7),
      gid=(-1, 8))  # fmt: skip
def _(at: Place, kind: str, uid: int, gid: int) -> object:
    os.chown(at.make(kind), uid, gid, follow_symlinks=False)
    return shape(at.path())


@call("chown to one's own ids")
def _(at: Place) -> object:
    os.chown(at.make("file"), os.getuid(), os.getgid())
    return shape(at.path())


@call("chown somebody's file")
def _(at: Place) -> object:
    os.chown(f"{at.theirs}/common", os.getuid(), os.getgid())
    return shape(f"{at.theirs}/common")


@call("set-ID bits of {mode:o} after {how}", mode=(0o4755, 0o2755, 0o2745, 0o6777),
      how=("chown(-1, -1)", "chown to oneself", "truncate", "fallocate", "link",
           "utime", "setxattr"))  # fmt: skip
def _(at: Place, mode: int, how: str) -> object:
    os.chmod(at.make("file"), mode)
    fd = os.open(at.path(), os.O_RDWR)
    calls: dict[str, Callable[[], object]] = {
        "chown(-1, -1)": lambda: os.chown(at.path(), -1, -1),
        "chown to oneself": lambda: os.chown(at.path(), os.getuid(), os.getgid()),
        "truncate": lambda: os.ftruncate(fd, 4096),
        "fallocate": lambda: raw.fallocate(fd, 0, 0, 4096),
        "link": lambda: os.link(at.path(), at.path("y")),
        "utime": lambda: os.utime(at.path()),
        "setxattr": lambda: os.setxattr(at.path(), "trusted.a", b"1"),
    }
    return [outcome(calls[how]), stat.filemode(os.stat(at.path()).st_mode)]


# --- times ----------------------------------------------------------------------------


@call("times moved by {how} of a {kind}", kind=("file", "directory"), how=(
    "chmod", "chown(-1, -1)", "chown", "link", "unlink of a link", "rename", "setxattr",
    "removexattr", "stat", "truncate to 0", "truncate", "fallocate", "open", "listing",
    "create inside", "mkdir inside", "unlink inside", "rename inside", "utime",
    "access", "readlink", "KEEP_SIZE", "punch", "O_TRUNC",
))  # fmt: skip
def _(at: Place, kind: str, how: str) -> object:
    path = at.make(kind)
    fd = os.open(path, os.O_RDONLY if kind == "directory" else os.O_RDWR)
    if how == "unlink of a link":
        os.link(path, at.path("y"))
    if how == "removexattr":
        os.setxattr(path, "trusted.a", b"1")
    if how in ("unlink inside", "rename inside", "listing"):
        os.mknod(f"{path}/y")
    calls: dict[str, Callable[[], object]] = {
        "chmod": lambda: os.chmod(path, 0o700),
        "chown(-1, -1)": lambda: os.chown(path, -1, -1),
        "chown": lambda: os.chown(path, os.getuid(), os.getgid()),
        "link": lambda: os.link(path, at.path("y")),
        "unlink of a link": lambda: os.unlink(at.path("y")),
        "rename": lambda: _there_and_back(path),
        "setxattr": lambda: os.setxattr(path, "trusted.a", b"1"),
        "removexattr": lambda: os.removexattr(path, "trusted.a"),
        "stat": lambda: os.stat(path),
        "truncate to 0": lambda: os.truncate(path, 0),
        "truncate": lambda: os.truncate(path, 8192),
        "fallocate": lambda: raw.fallocate(fd, 0, 0, 4096),
        "KEEP_SIZE": lambda: raw.fallocate(fd, raw.KEEP_SIZE, 0, 4096),
        "punch": lambda: raw.punch(fd, 0, 4096),
        "O_TRUNC": lambda: os.open(path, os.O_RDWR | os.O_TRUNC),
        "open": lambda: os.close(os.open(path, os.O_RDONLY)),
        "listing": lambda: os.listdir(path),
        "create inside": lambda: os.mknod(f"{path}/y"),
        "mkdir inside": lambda: os.mkdir(f"{path}/y"),
        "unlink inside": lambda: os.unlink(f"{path}/y"),
        "rename inside": lambda: os.rename(f"{path}/y", f"{path}/z"),
        "utime": lambda: os.utime(path),
        "access": lambda: os.access(path, os.R_OK),
        "readlink": lambda: os.readlink(path),
    }
    return moved(path, calls[how])


def _there_and_back(path: str) -> None:
    # `moved` looks at the path afterwards.
    os.rename(path, f"{path}2")
    os.rename(f"{path}2", path)


@call("times moved by readlink of a symlink")
def _(at: Place) -> object:
    return moved(at.make("symlink"), lambda: os.readlink(at.path()))


@call("times moved by O_NOATIME listing")
def _(at: Place) -> object:
    at.make("full")
    fd = os.open(at.path(), os.O_RDONLY | os.O_NOATIME)
    return moved(at.path(), lambda: os.listdir(fd))


@call("utime of {kind} to {ns}", kind=("file", "directory", "symlink", "absent"),
      ns=(0, 1, 999999999, 1 << 60, -1))  # fmt: skip
def _(at: Place, kind: str, ns: int) -> object:
    os.utime(at.make(kind), ns=(ns, 2 * ns), follow_symlinks=False)
    found = os.lstat(at.path())
    return [found.st_atime_ns, found.st_mtime_ns]


@call("utime of somebody's {what}: {how}", what=("secret", "common"),
      how=("now", "a time"))  # fmt: skip
def _(at: Place, what: str, how: str) -> object:
    path = f"{at.theirs}/{what}"
    os.utime(path, None if how == "now" else (1, 2))
    return "set"


# --- extended attributes --------------------------------------------------------------


@call("setxattr {name} of {kind}", kind=("file", "directory", "symlink", "fifo"), name=(
    "user.a", "trusted.a", "security.a", "system.a", "nonsense", "user.", "",
))  # fmt: skip
def _(at: Place, kind: str, name: str) -> object:
    path = at.make(kind)
    result = outcome(os.setxattr, path, name, b"value", follow_symlinks=False)
    return [result, _names(path)]


def _names(path: str) -> list[str]:
    """Names of xattrs, without those that a security module adds."""
    names = os.listxattr(path, follow_symlinks=False)
    return sorted(name for name in names if name != "security.selinux")


@call("getxattr {name}", name=("user.b", "trusted.b", "security.b", "user.", "x"))
def _(at: Place, name: str) -> object:
    return os.getxattr(at.make("file"), name).decode()


@call("setxattr with {flag} where there is {what}",
      flag=("XATTR_CREATE", "XATTR_REPLACE"), what=("one", "none"))  # fmt: skip
def _(at: Place, flag: str, what: str) -> object:
    path = at.make("file")
    if what == "one":
        os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.a", b"2", getattr(os, flag))
    return os.getxattr(path, "user.a").decode()


@call("an xattr of {size} bytes", size=(0, 1, 1000, 65535, 65536, 65537))
def _(at: Place, size: int) -> object:
    os.setxattr(at.make("file"), "user.a", b"v" * size)
    return len(os.getxattr(at.path(), "user.a"))


@call("an xattr name of {size} bytes", size=(255, 256))
def _(at: Place, size: int) -> object:
    os.setxattr(at.make("file"), "user." + "n" * (size - 5), b"v")
    return len(os.listxattr(at.path()))


@call("getxattr into {size} bytes", size=(0, 4, 5, 6))
def _(at: Place, size: int) -> object:
    os.setxattr(at.make("file"), "user.a", b"value")
    return raw.getxattr(at.path(), "user.a", size)


@call("listxattr into {size} bytes", size=(0, 6, 7))
def _(at: Place, size: int) -> object:
    os.setxattr(at.make("file"), "user.a", b"value")
    return raw.listxattr(at.path(), size)


@call("removexattr where there is {what}", what=("one", "none"))
def _(at: Place, what: str) -> object:
    path = at.make("file")
    if what == "one":
        os.setxattr(path, "user.a", b"1")
    os.removexattr(path, "user.a")
    return os.listxattr(path)


@call("{how} user.a of somebody's {what}", how=("get", "set", "remove", "list"),
      what=("secret", "public", "common", "sticky"))  # fmt: skip
def _(at: Place, how: str, what: str) -> object:
    path = f"{at.theirs}/{what}"
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: os.getxattr(path, "user.a"),
        "set": lambda: os.setxattr(path, "user.a", b"1"),
        "remove": lambda: os.removexattr(path, "user.a"),
        "list": lambda: os.listxattr(path),
    }
    return calls[how]()


@call("an access control list: {which}", which=("access", "default"))
def _(at: Place, which: str) -> object:
    # POSIX_ACL_XATTR_VERSION and the three entries of mode 0640.
    entries = ((1, 6), (4, 4), (32, 0))
    acl = struct.pack("=I", 2) + b"".join(
        struct.pack("=HHI", tag, bits, 0xFFFFFFFF) for tag, bits in entries
    )
    os.setxattr(at.make("directory"), f"system.posix_acl_{which}", acl)
    return shape(at.path())
