"""Extended attributes: the backing's own, three virtual ones, and those refused."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import pytest

import inaccfs
from tests.mount import raw, support
from tests.mount.support import inaccfs_command, new_file, outcome, run

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse

VIRTUAL = ("user.inaccfs.magic", "user.inaccfs.control", "user.inaccfs.status")


@pytest.fixture
def file(mount: Mount) -> Path:
    path = new_file(mount.path / "file")
    if outcome(os.setxattr, path, "user.test", b"") == "EOPNOTSUPP":
        pytest.skip("a tmpfs has user xattrs since Linux 6.6")
    os.removexattr(path, "user.test")
    return path


def test_an_attribute_is_set_read_listed_and_removed(file: Path) -> None:
    run("setfattr", "-n", "user.colour", "-v", "blue", file)

    output = run("getfattr", "--absolute-names", "-n", "user.colour", file).stdout
    assert 'user.colour="blue"' in output
    assert os.listxattr(file) == ["user.colour"]
    run("setfattr", "-x", "user.colour", file)
    assert os.listxattr(file) == []
    assert outcome(os.getxattr, file, "user.colour") == "ENODATA"
    assert outcome(os.removexattr, file, "user.colour") == "ENODATA"


def test_values_are_bytes_of_any_kind_and_length(mount: Mount, file: Path) -> None:
    directory = mount.path / "directory"
    directory.mkdir()
    for path in (file, directory, mount.path):
        for value in (b"", b"\0", bytes(range(256)), b"x" * 4096, b"y" * 20_000):
            os.setxattr(path, "user.value", value)
            assert os.getxattr(path, "user.value") == value
        largest = b"z" * 65536
        assert outcome(os.setxattr, path, "user.value", largest + b"z") == "E2BIG"
        os.setxattr(path, "user.value", largest)
        assert os.getxattr(path, "user.value") == largest


def test_create_and_replace_are_distinguished(file: Path) -> None:
    """XATTR_CREATE and XATTR_REPLACE of setxattr(2)."""
    assert outcome(os.setxattr, file, "user.a", b"1", os.XATTR_REPLACE) == "ENODATA"
    assert outcome(os.setxattr, file, "user.a", b"1", os.XATTR_CREATE) == "ok"
    assert outcome(os.setxattr, file, "user.a", b"2", os.XATTR_CREATE) == "EEXIST"
    assert os.getxattr(file, "user.a") == b"1"
    assert outcome(os.setxattr, file, "user.a", b"2", os.XATTR_REPLACE) == "ok"
    assert os.getxattr(file, "user.a") == b"2"


def test_a_buffer_that_is_too_small_is_erange(file: Path) -> None:
    os.setxattr(file, "user.value", b"x" * 100)

    assert raw.getxattr(file, "user.value", 0) == 100
    assert raw.getxattr(file, "user.value", 100) == 100
    assert outcome(raw.getxattr, file, "user.value", 99) == "ERANGE"
    names = len(b"user.value\0")
    assert raw.listxattr(file, 0) == names
    assert raw.listxattr(file, names) == names
    assert outcome(raw.listxattr, file, names - 1) == "ERANGE"


def test_many_attributes_are_all_listed(file: Path) -> None:
    names = {f"user.{number:03}{'x' * 50}" for number in range(500)}
    for name in names:
        os.setxattr(file, name, name.encode())

    assert set(os.listxattr(file)) == names
    assert os.getxattr(file, max(names)) == max(names).encode()


def test_names_are_limited_as_anywhere(file: Path) -> None:
    longest = "user." + "n" * 250
    os.setxattr(file, longest, b"")
    assert os.listxattr(file) == [longest]
    assert outcome(os.setxattr, file, longest + "n", b"") == "ERANGE"
    assert outcome(os.setxattr, file, "nonsense", b"") == "EOPNOTSUPP"


@support.needs_root
def test_attributes_of_root_are_kept_from_others(mount: Mount, file: Path) -> None:
    os.setxattr(file, "trusted.secret", b"1")
    assert os.getxattr(file, "trusted.secret") == b"1"


def test_a_symbolic_link_has_no_user_attributes(mount: Mount, file: Path) -> None:
    link = mount.path / "link"
    link.symlink_to("file")
    result = outcome(os.setxattr, link, "user.a", b"", follow_symlinks=False)
    assert result == "EPERM"


def test_attributes_stay_with_the_file(mount: Mount, file: Path) -> None:
    os.setxattr(file, "user.a", b"1")
    os.link(file, mount.path / "link")
    os.rename(file, mount.path / "moved")
    os.unlink(mount.path / "moved")
    assert os.getxattr(mount.path / "link", "user.a") == b"1"

    with support.opened(mount.path / "link") as fd:
        os.unlink(mount.path / "link")
        assert os.getxattr(fd, "user.a") == b"1"
        os.setxattr(fd, "user.b", b"2")
        assert set(os.listxattr(fd)) == {"user.a", "user.b"}


# --- virtual attributes -------------------------------------------------------


def test_the_root_has_the_magic_the_control_socket_and_the_status(
    mount: Mount,
) -> None:
    """statfs(2) cannot: its f_type stays FUSE's. INACCESSIBLE_MAGIC of v8."""
    assert os.getxattr(mount.path, "user.inaccfs.magic") == b"0x494e4143"
    assert os.getxattr(mount.path, "user.inaccfs.control") == os.fsencode(mount.control)
    status = json.loads(os.getxattr(mount.path, "user.inaccfs.status"))
    assert status["mountpoint"] == str(mount.path)
    assert status["pid"] == mount.pid


def test_a_client_finds_a_socket_whose_path_is_not_utf_8(scratch: Path) -> None:
    control = scratch / os.fsdecode(b"\xff")
    with support.mounted(control=control) as mount:
        assert mount.status().control == f"{scratch}/\\xff"
        with inaccfs.connect(mount.path) as shim:
            assert shim.query_status().pid == mount.pid
        run(*inaccfs_command("kvm", "stress", mount.path, "--seconds=0.1"))


def test_the_virtual_attributes_are_listed_with_the_others(mount: Mount) -> None:
    assert set(os.listxattr(mount.path)) == set(VIRTUAL)
    output = run("getfattr", "--absolute-names", "-d", mount.path).stdout
    assert 'user.inaccfs.magic="0x494e4143"' in output


def test_the_virtual_attributes_cannot_be_changed(mount: Mount) -> None:
    for name in VIRTUAL:
        before = os.getxattr(mount.path, name)
        assert outcome(os.setxattr, mount.path, name, b"x") == "EPERM"
        result = outcome(os.setxattr, mount.path, name, b"x", os.XATTR_REPLACE)
        assert result == "EPERM"
        assert outcome(os.removexattr, mount.path, name) == "EPERM"
        assert os.getxattr(mount.path, name) == before
        shown = run("setfattr", "-n", name, "-v", "x", mount.path, status=1)
        assert os.strerror(errno.EPERM) in shown.stderr


def test_only_the_root_has_virtual_attributes(mount: Mount, file: Path) -> None:
    directory = mount.path / "directory"
    directory.mkdir()
    for path in (file, directory):
        assert os.listxattr(path) == []
        for name in VIRTUAL:
            assert outcome(os.getxattr, path, name) == "ENODATA"
            # This is an ordinary name there.
            os.setxattr(path, name, b"mine")
            assert os.getxattr(path, name) == b"mine"


# --- refused ------------------------------------------------------------------


@support.needs_root
def test_attributes_that_the_kernel_would_not_obey_cannot_be_set(mount: Mount) -> None:
    """Access control lists and file capabilities."""
    directory = mount.path / "directory"
    directory.mkdir()
    # Version 2, then user::rwx, group::r-x, other::r-x: a valid list.
    acl = bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000500ffffffff")
    capability = bytes.fromhex("01000002 00000000 00000000 00000000 00000000")
    for name, value in {
        "system.posix_acl_access": acl,
        "system.posix_acl_default": acl,
        "security.capability": capability,
    }.items():
        assert outcome(os.setxattr, directory, name, value) == "EOPNOTSUPP"
        assert outcome(os.getxattr, directory, name) in ("EOPNOTSUPP", "ENODATA")
    assert os.listxattr(directory) == []
