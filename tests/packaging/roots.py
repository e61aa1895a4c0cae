"""A minimal Debian system in a directory."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parent.parent.parent

RELEASES: Final = os.environ.get("INACCFS_RELEASES", "bookworm trixie").split()
"""Names as debootstrap knows them."""

# Mounts that end with the command, because no other process uses the namespace.
_ENTER: Final = """
set -e
cd "$1"; shift
mount -t proc proc proc
mount -t sysfs -o ro sys sys
mount --rbind /dev dev
mount -t tmpfs tmp tmp
mount -t tmpfs run run
exec chroot . /usr/bin/env -i HOME=/root \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"
"""


@dataclass(frozen=True, slots=True)
class Root:
    """One system; /src in it is the checkout."""

    release: str
    path: Path

    @classmethod
    def make(cls, release: str, path: Path) -> Root:
        """Make one with debootstrap, in an empty directory."""
        made = cls(release, path)
        _run("debootstrap", "--variant=minbase", release, path)
        for name in ("resolv.conf", "hosts"):
            made.copy_setting(name)
        # Mirrors of unreleased systems may be out of date.
        made.run("apt-get", "-qq", "-o", "Acquire::Check-Valid-Until=false", "update")
        made.run(
            "apt-get",
            "-qq",
            "install",
            "-y",
            "--no-install-recommends",
            "python3",
            "python3-venv",
            "python3-dev",
            "gcc",
            "pkg-config",
            "fuse3",
            "libfuse3-dev",
            "man-db",
        )
        # After the packages, because one of them makes a file of certificates itself.
        made.copy_setting("ssl/certs/ca-certificates.crt")
        made.copy_source()
        return made

    def copy_setting(self, name: str) -> None:
        """Copy a file of this machine's /etc, which says how registries are reached."""
        if os.path.exists(f"/etc/{name}"):
            target = self.path / "etc" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(f"/etc/{name}", target)

    def copy_source(self) -> None:
        """Copy the files of the checkout that git does not ignore to /src."""
        files = _run(
            "git", "-C", TOP, "ls-files", "-co", "--exclude-standard", "-z"
        ).split("\0")
        for name in filter(None, files):
            source, target = TOP / name, self.path / "src" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the system, in a new mount namespace; return its output."""
        settings = [f"{k}={v}" for k, v in os.environ.items() if k.startswith("PIP_")]
        return _run(
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            _ENTER,
            "sh",
            self.path,
            *settings,
            *command,
            check=check,
        )

    def files(self) -> set[str]:
        """All paths of the system, without the caches and logs of packages."""
        ours = ("var/", "src/", "etc/ld.so.cache", "root/", "tmp/")
        found = (str(one.relative_to(self.path)) for one in self.path.rglob("*"))
        return {name for name in found if not name.startswith(ours)}

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.path)


def _run(*command: object, check: bool = True) -> str:
    done = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if check and done.returncode:
        raise AssertionError(f"{command}: status {done.returncode}\n{done.stdout}")
    return done.stdout
