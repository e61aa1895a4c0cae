"""What inaccfs needs of a machine: what it has, what works without it, how to get it.

Each check is a function of a `Machine`, which it does not change.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import stat
from importlib import metadata
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from inaccfs import runtime
from inaccfs.machine import Machine
from inaccfs.syscalls import CAP_IPC_LOCK, CAP_SYS_ADMIN

if TYPE_CHECKING:
    from collections.abc import Callable

State: TypeAlias = Literal["ok", "limited", "missing"]

_FDS: Final = 65536
_LOCKED_BYTES: Final = 64 << 20

_PASSTHROUGH_SINCE: Final = (6, 9)

_PACKAGES: Final = ("pyfuse3", "trio", "msgspec")


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The result of one check."""

    name: str
    # "missing" if nothing can be mounted without it; "limited" if something is lacking.
    state: State
    # What was found.
    found: str
    # Unless the state is "ok": what does not work, and what to do about it.
    without: str = ""
    fix: str = ""


def examine(machine: Machine | None = None) -> list[Finding]:
    """All checks, in the order in which a user should handle them."""
    here = Machine() if machine is None else machine
    return [check(here) for check in _CHECKS]


def can_mount(findings: list[Finding]) -> bool:
    """Whether this user can mount here."""
    return all(finding.state != "missing" for finding in findings)


# --- what a mount needs -----------------------------------------------------------


def _device(machine: Machine) -> Finding:
    path = "/dev/fuse"
    nothing = "nothing can be mounted"
    found = machine.stat(path)
    if found is None or not stat.S_ISCHR(found.st_mode):
        return Finding(
            name=path,
            state="missing",
            found="there is none" if found is None else "it is no device",
            without=nothing,
            fix="modprobe fuse; for a container give --device /dev/fuse",
        )
    mode = f"mode {stat.S_IMODE(found.st_mode):04o}, uid {found.st_uid}"
    if (refusal := machine.try_device(path)) is not None:
        return Finding(
            name=path,
            state="missing",
            found=f"{mode}: {refusal.strerror}",
            without=nothing,
            fix={
                errno.EACCES: "chmod 0666 /dev/fuse, which is what udev gives it",
                errno.EPERM: "let the container use it: --device /dev/fuse",
            }.get(refusal.errno or 0, "modprobe fuse"),
        )
    if found.st_mode & 0o666 != 0o666:
        return Finding(
            name=path,
            state="limited",
            found=mode,
            without="other users cannot mount",
            fix="chmod 0666 /dev/fuse, which is what udev gives it",
        )
    return Finding(name=path, state="ok", found=mode)


def _may_mount(machine: Machine) -> bool:
    return machine.uid() == 0 and machine.has(CAP_SYS_ADMIN)


def _fusermount(machine: Machine) -> Finding:
    name = "fusermount3"
    needed = not _may_mount(machine)
    without = "this user cannot mount" if needed else "users other than root cannot"
    state: State = "missing" if needed else "limited"
    path = machine.which(name)
    if path is None:
        return Finding(
            name=name,
            state=state,
            found="there is none",
            without=without,
            fix="install the package fuse3",
        )
    found = machine.stat(path)
    if found is None or not (found.st_mode & stat.S_ISUID and found.st_uid == 0):
        return Finding(
            name=name,
            state=state,
            found=f"{path} is not setuid root",
            without=without,
            fix=f"install the package fuse3 again, or chmod u+s {path} as root",
        )
    return Finding(name=name, state="ok", found=path)


def _allow_other(machine: Machine) -> Finding:
    name, path = "user_allow_other", "/etc/fuse.conf"
    text = machine.read(path) or ""
    if re.search(r"^\s*user_allow_other\s*$", text, re.MULTILINE):
        return Finding(name=name, state="ok", found=f"in {path}")
    return Finding(
        name=name,
        state="limited",
        found=f"not in {path}",
        without="--allow-other is for root only",
        fix=f"write the line user_allow_other into {path}",
    )


def _packages(machine: Machine) -> Finding:
    found, lacking = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lacking.append(name)
    if lacking:
        return Finding(
            name="packages",
            state="missing",
            found=f"no {', '.join(lacking)}",
            without="nothing can be mounted",
            fix=f"pip install {' '.join(lacking)}",
        )
    return Finding(name="packages", state="ok", found=", ".join(found))


def _directory(machine: Machine) -> Finding:
    name = "sockets and logs"
    path = runtime.directory()
    there = path
    while machine.stat(there) is None and there != "/":
        there = os.path.dirname(there)
    if machine.may_write(there):
        return Finding(name=name, state="ok", found=path)
    return Finding(
        name=name,
        state="limited",
        found=f"{path}: this user may not make it, or write there",
        without="each mount needs --control and --log",
        fix="set XDG_RUNTIME_DIR to a directory of this user's",
    )


# --- what makes more of a mount ---------------------------------------------------


def _is_privileged(machine: Machine) -> bool:
    """Whether the kernel allows operations that concern the whole machine."""
    return machine.has(CAP_SYS_ADMIN) and machine.is_initial_namespace()


_AS_ROOT: Final = "mount as root, outside of containers"


def _private_tmpfs(machine: Machine) -> Finding:
    name = "private tmpfs"
    if machine.has(CAP_SYS_ADMIN):
        return Finding(name=name, state="ok", found="CAP_SYS_ADMIN")
    if not (reason := machine.user_namespaces()):
        return Finding(name=name, state="ok", found="in a user namespace")
    return Finding(
        name=name,
        state="limited",
        found=f"no CAP_SYS_ADMIN; {reason}",
        without="a directory of a tmpfs stands in for it, which the user's own "
        "processes can reach, and has no --size and --huge",
        fix="mount as root, or let users make namespaces: sysctl "
        "user.max_user_namespaces, and where there is AppArmor "
        "kernel.apparmor_restrict_unprivileged_userns=0",
    )


def _passthrough(machine: Machine) -> Finding:
    name = "FUSE passthrough"
    release = machine.release()
    config = machine.read(f"/boot/config-{release}")
    since = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if config is not None:
        has = "CONFIG_FUSE_PASSTHROUGH=y" in config
        found = f"{'' if has else 'no '}CONFIG_FUSE_PASSTHROUGH in Linux {release}"
    else:
        has = since >= _PASSTHROUGH_SINCE
        found = f"Linux {release}, whose configuration is not readable"
    without = "the kernel maps files (mmap) instead of refusing it"
    if not has:
        return Finding(
            name=name,
            state="limited",
            found=found,
            without=without,
            fix="boot Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH=y",
        )
    if not _is_privileged(machine):
        return Finding(
            name=name,
            state="limited",
            found="needs CAP_SYS_ADMIN in the initial user namespace",
            without=without,
            fix=_AS_ROOT,
        )
    return Finding(name=name, state="ok", found=found)


def _io_uring(machine: Machine) -> Finding:
    name = "io_uring"
    refusal = machine.try_io_uring()
    if refusal is None:
        return Finding(name=name, state="ok", found="it makes rings")
    disabled = (machine.read("/proc/sys/kernel/io_uring_disabled") or "0").strip()
    return Finding(
        name=name,
        state="limited",
        found=refusal.strerror or str(refusal),
        without="fetched pages are only mlocked: compaction may move them",
        fix="sysctl kernel.io_uring_disabled=0"
        if disabled != "0"
        else "let the container's seccomp filter allow io_uring_setup",
    )


def _pagemap(machine: Machine) -> Finding:
    name = "pagemap"
    if machine.shows_frames():
        return Finding(name=name, state="ok", found="it has frame numbers")
    return Finding(
        name=name,
        state="limited",
        found="it has no frame numbers for this user",
        without="page frame numbers are simulated",
        fix=_AS_ROOT,
    )


def _cachestat(machine: Machine) -> Finding:
    name = "cachestat"
    refusal = machine.try_cachestat()
    if refusal is None:
        return Finding(name=name, state="ok", found="it counts pages")
    return Finding(
        name=name,
        state="limited",
        found=refusal.strerror or str(refusal),
        without="inaccfs map does not know allocated pages from holes",
        fix="boot Linux 6.5 or later",
    )


def _guest_memfd(machine: Machine) -> Finding:
    name = "guest_memfd"
    if not (reason := machine.guest_memfd()):
        return Finding(name=name, state="ok", found="KVM has it")
    return Finding(
        name=name,
        state="limited",
        found=reason,
        without="inaccfs probe cannot compare with the kernel's own; mounts work",
        fix="boot Linux 6.8 or later with CONFIG_KVM_SW_PROTECTED_VM, or 6.18 or later "
        "with KVM, and let this user open /dev/kvm",
    )


def _fds(machine: Machine) -> Finding:
    name = "open files"
    limit = machine.limit(resource.RLIMIT_NOFILE)
    found = "no limit" if limit is None else f"up to {limit:,}"
    if limit is None or limit >= _FDS:
        return Finding(name=name, state="ok", found=found)
    return Finding(
        name=name,
        state="limited",
        found=found,
        without="a mount has fewer open files, for each takes an fd of the daemon",
        fix=f"ulimit -Hn {_FDS}, or LimitNOFILE= of the unit",
    )


def _locked_memory(machine: Machine) -> Finding:
    name = "locked memory"
    # The kernel does not ask for it in a namespace: can_do_mlock() in mm/mlock.c.
    if machine.is_initial_namespace() and machine.has(CAP_IPC_LOCK):
        return Finding(name=name, state="ok", found="no limit (CAP_IPC_LOCK)")
    limit = machine.limit(resource.RLIMIT_MEMLOCK)
    found = "no limit" if limit is None else f"up to {limit >> 10:,} KiB"
    if limit is None or limit >= _LOCKED_BYTES:
        return Finding(name=name, state="ok", found=found)
    return Finding(
        name=name,
        state="limited",
        found=found,
        without="with real frames get-pfn is ENOMEM beyond that",
        fix="ulimit -Hl unlimited, or LimitMEMLOCK= of the unit",
    )


_CHECKS: Final[tuple[Callable[[Machine], Finding], ...]] = (
    *(_device, _fusermount, _allow_other, _packages, _directory),
    *(_private_tmpfs, _passthrough, _io_uring, _pagemap, _cachestat, _guest_memfd),
    *(_fds, _locked_memory),
)
