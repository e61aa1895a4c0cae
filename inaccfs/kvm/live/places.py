"""Which kernel to build, and its place in the cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

from inaccfs import children
from inaccfs.errors import InaccfsError

SOURCE_VARIABLE: Final = "INACCFS_LINUX_SOURCE"
"""The environment variable that selects another source package, such as a newer one."""

_DEFAULT_SOURCE: Final = "linux-source-6.12"

# Packages that building needs besides the source, and that booting needs.
_BUILD_PACKAGES: Final = (
    *("bc", "bison", "cpio", "flex", "gcc", "kmod", "libelf-dev", "libssl-dev"),
    *("make", "xz-utils"),
)
_BOOT_PACKAGES: Final = ("qemu-system-x86",)

_LINE: Final = "${Package} ${db:Status-Status} ${Version}\n"


class LiveError(InaccfsError):
    """There is no emulated machine; the message says what to do."""


class Source(NamedTuple):
    """A source package of Debian's."""

    package: str
    version: str

    @property
    def tarball(self) -> Path:
        """The tar file in which the package has the kernel's source."""
        return Path(f"/usr/src/{self.package}.tar.xz")

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


class Kernel(NamedTuple):
    """A kernel in the cache."""

    directory: Path
    source: str
    """The source package that it is built from, with its version."""

    @property
    def release(self) -> str:
        """Its version, that of the source package: 6.12.117-1."""
        return self.source.split(" ")[1]

    @property
    def image(self) -> Path:
        """The image that QEMU boots."""
        return self.directory / "bzImage"

    @property
    def selftests(self) -> Path:
        """The kernel's own tests of KVM, statically linked."""
        return self.directory / "selftests"


def source_package() -> str:
    """The name of the selected source package."""
    return os.environ.get(SOURCE_VARIABLE) or _DEFAULT_SOURCE


def cache() -> Path:
    """The directory of all kernels, which may not exist yet.

    Raises:
        LiveError: the user has no home directory.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise LiveError("this user has no home for a cache: set XDG_CACHE_HOME")
    return Path(base) / "inaccfs" / "kvm-live"


def config() -> bytes:
    """The kernel's configuration, beyond tinyconfig."""
    return resources.files(__package__).joinpath("kernel.config").read_bytes()


def key(source: Source) -> str:
    """The name of *source*'s kernel in the cache, with a hash of all that makes it."""
    digest = hashlib.sha256(config() + f"\n{source}\n".encode())
    return f"{source.package.removeprefix('linux-source-')}-{digest.hexdigest()[:12]}"


def find_source() -> Source:
    """The installed source package; checks all that building needs.

    Raises:
        LiveError: packages are missing; the message names all of them.
    """
    package = source_package()
    machine = os.uname().machine
    if machine != "x86_64":
        raise LiveError(
            f"the emulated machine is x86_64, and runs no Python of {machine}"
        )
    if shutil.which("dpkg-query") is None:
        raise LiveError(
            f"the kernel is built from Debian's {package}, and this is no Debian: "
            "there is no dpkg-query"
        )
    versions = _installed((package, *_BUILD_PACKAGES, *_BOOT_PACKAGES))
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        raise LiveError(
            "packages are missing; as root: apt-get install -y "
            f"--no-install-recommends {' '.join(missing)}"
        )
    version = versions[package]
    assert version is not None
    return Source(package, version)


def _installed(packages: tuple[str, ...]) -> dict[str, str | None]:
    """The version of each package; None where it is not installed."""
    with children.starting("dpkg-query", LiveError):
        found = subprocess.run(
            ["dpkg-query", "-W", "-f", _LINE, *packages],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    versions: dict[str, str | None] = dict.fromkeys(packages)
    for line in found.stdout.splitlines():
        name, status, version = line.split(" ", 2)
        if status == "installed":
            versions[name] = version
    return versions


def find_kernel() -> Kernel:
    """The newest kernel in the cache that was built from the selected source package.

    Raises:
        LiveError: there is none.
    """
    prefix = source_package().removeprefix("linux-source-")
    found = [
        path for path in cache().glob(f"{prefix}-*") if (path / "source").is_file()
    ]
    if not found:
        raise LiveError(
            f"there is no kernel in {cache()}: inaccfs kvm live build makes one, once, "
            "in some 10 minutes"
        )
    newest = max(found, key=lambda path: path.stat().st_mtime)
    return Kernel(newest, (newest / "source").read_text().strip())
