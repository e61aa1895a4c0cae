"""A package and a pip install on minimal systems: install, use, remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mount import support

if TYPE_CHECKING:
    from tests.packaging.roots import Root

pytestmark = [pytest.mark.fuse, support.needs_root]

# What a user does first, by names that exist only after an installation.
USE = r"""
set -e
mkdir -p /tmp/guest
mount -t inaccfs none /tmp/guest -o size=16m
truncate -s 1M /tmp/guest/file
fallocate -l 64K /tmp/guest/file
! cat /tmp/guest/file 2>/dev/null
inaccfs status /tmp/guest | grep -q 'size       16 MiB'
inaccfs metrics /tmp/guest | grep -q '^inaccfs_allocated_bytes'
inaccfs umount /tmp/guest
man inaccfs | grep -q 'read, write or map'
man inaccfs-mount | grep -q -- --semantics
test -f "$1/lib/systemd/system/inaccfs@.service"
bash -c "source $1/share/bash-completion/completions/inaccfs; complete -p inaccfs"
"""


def test_the_debian_package(root: Root) -> None:
    before = root.files()
    root.run("sh", "-c", "cd /src && mountscripts/package /root")
    root.run("sh", "-c", "apt-get -qq install -y /root/inaccfs_*.deb")
    used = root.run("sh", "-c", USE, "sh", "/usr")
    assert "-F _python_argcomplete inaccfs" in used
    [script] = [name for name in root.files() - before if name == "usr/bin/inaccfs"]
    assert script
    # Where Debian's zsh looks.
    assert "usr/share/zsh/vendor-completions/_inaccfs" in root.files()
    root.run("apt-get", "-qq", "purge", "-y", "inaccfs")
    assert root.files() == before


def test_pip_and_setup_system(root: Root) -> None:
    before = root.files()
    root.run("python3", "-m", "venv", "/opt/inaccfs")
    root.run("/opt/inaccfs/bin/pip", "install", "-q", "/src")
    root.run("ln", "-s", "/opt/inaccfs/bin/inaccfs", "/usr/local/bin/")
    root.run("inaccfs", "setup-system")
    root.run("sh", "-c", USE, "sh", "/usr/local")
    root.run("inaccfs", "setup-system", "--remove")
    root.run("rm", "-r", "/opt/inaccfs", "/usr/local/bin/inaccfs")
    assert root.files() == before
