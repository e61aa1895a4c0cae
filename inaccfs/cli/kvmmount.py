"""The mount that a simulated VM runs on: an existing one, or a private one."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inaccfs import launch
from inaccfs.cli import mountoptions
from inaccfs.errors import MountError
from inaccfs.fuse import finding

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from inaccfs.client import Client
    from inaccfs.status import Status


_HUGE_BYTES: Final = 2 << 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add -o, the options of a private mount."""
    parser.add_argument(
        "-o",
        "--options",
        metavar="OPT[,OPT]",
        action="append",
        default=[],
        help="of the private mount, as inaccfs mount -o has them: size=1g,huge=always",
    )


@dataclass(frozen=True, slots=True)
class Given:
    """An existing mount: like an `inaccfs.Mount`, but without its process."""

    path: Path
    pid: int
    control: Path
    log: Path | None

    def status(self) -> Status:
        """The present status of the mount."""
        return launch.read_status(str(self.path))


@contextmanager
def mount_of(
    mountpoint: str | None, options: Sequence[str] = ()
) -> Iterator[tuple[Given | launch.Mount, Client]]:
    """The mount at *mountpoint*, or a private one with *options*; and a client."""
    from inaccfs.client import connect

    if mountpoint is None:
        # Check the options before a daemon is started with them.
        mountoptions.check(options)
        with launch.mounted(options=options) as own, connect(own.control) as shim:
            yield own, shim
        return
    status = launch.read_status(mountpoint)
    with connect(mountpoint) as shim:
        yield (
            Given(
                Path(finding.find(mountpoint).path),
                status.pid,
                Path(launch.read_control(mountpoint)),
                None if status.log is None else Path(status.log),
            ),
            shim,
        )


@contextmanager
def roomy_mount_of(args: argparse.Namespace, pages: int) -> Iterator[Client]:
    """A client of a mount that has room for *pages* of 4 KiB, and allows get-memory.

    A private mount has huge pages if the kernel has them and the options do not differ.
    """
    check_options(args, args.mountpoint, "MOUNTPOINT")
    words = ",".join(args.options).split(",")
    # A wrapped directory cannot get another size.
    wraps = any(word.startswith("backing=") for word in words)
    huge = ["huge=always"] if _has_huge_pages() and not wraps else []
    # If an option is repeated, the last one counts.
    with mount_of(args.mountpoint, [*huge, *args.options]) as (mount, shim):
        found = os.statvfs(mount.path)
        if found.f_bavail * found.f_frsize < pages << 12:
            raise MountError(
                f"use a mount with more space: {mount.path} lacks the {pages >> 8} MiB "
                "that this needs"
            )
        # A file may have to consist of huge pages.
        size = max(found.f_frsize, _HUGE_BYTES)
        fd = shim.memfd_create("kvm-probe", size=size)
        try:
            with shim.file(fd) as file:
                os.close(file.get_memory())
        except PermissionError:
            raise MountError(
                f"{mount.path} gives the memory of guests to nobody "
                "(--no-guest-access), or not to you: use another mount"
            ) from None
        finally:
            os.close(fd)
        yield shim


def check_options(args: argparse.Namespace, mountpoint: str | None, it: str) -> None:
    """Refuse -o together with a mountpoint, which messages call *it*."""
    if mountpoint is not None and args.options:
        args.parser.error(f"-o is for the private mount: leave it out, or {it}")


def _has_huge_pages() -> bool:
    return os.geteuid() == 0 and os.path.isdir("/sys/kernel/mm/transparent_hugepage")
