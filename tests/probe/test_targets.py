"""The files that inaccfs probe is asked about, and what it leaves of them."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from inaccfs.probe import naming, table
from inaccfs.probe.attempts import attempt
from inaccfs.probe.targets import Directory, GivenFile, GuestMemfd, ProbeError
from tests.probe.support import SIZE, TOP, row

if TYPE_CHECKING:
    from pathlib import Path

# Idle threads of earlier tests have no lock that a child needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("missing", "missing does not exist: name an empty file, a directory"),
        ("guest-memfd", "does not exist: .* guest_memfd:mmap"),
        ("pipe", "pipe is neither a regular file nor a directory"),
        ("/dev/null", "/dev/null is neither"),
        ("full", "full has 4 bytes, and would lose them: .* or use --force"),
        ("memfd:mmap", "memfd has no flags; a file is ./memfd:mmap"),
        ("guest_memfd:huge", "no flag 'huge' of guest_memfd: mmap, init_shared"),
        ("full/below", "cannot look at full/below: Not a directory"),
        ("/proc", "/proc: cannot make a file: "),
    ],
)
def test_a_target_that_cannot_be_probed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "full").write_text("full")
    with pytest.raises(ProbeError, match=expected) as refusal:
        naming.find(name)
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "full").read_text() == "full"


def test_a_directory_keeps_nothing(tmp_path: Path) -> None:
    target = naming.find(str(tmp_path))
    assert isinstance(target, Directory)
    read = next(row for row in table.ROWS if row.name == "read")
    assert attempt(target, read) == "ok 4096 bytes"
    assert os.listdir(tmp_path) == []


def test_a_directory_without_nameless_files_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many FUSE file systems, and NFS, are like this."""

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "")
        return really(path, flags, mode)

    really = os.open
    monkeypatch.setattr(os, "open", refuse)
    target = naming.find(str(tmp_path))
    assert attempt(target, row(lambda it: f"size {it.size}")) == f"size {SIZE}"
    assert os.listdir(tmp_path) == []


def test_an_empty_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "memfd"
    path.touch()
    assert isinstance(naming.find(str(path)), GivenFile)
    # The question leaves the file as it is.
    assert path.stat().st_size == 0


def test_a_named_file_keeps_its_attributes(tmp_path: Path) -> None:
    """Its bytes are lost, as documented; its owner, mode and names are kept."""
    path = tmp_path / "full"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o4751)
    before = path.stat()
    # A small process forks a child for each row much faster than this one.
    ran = subprocess.run(
        [sys.executable, "-m", "inaccfs", "probe", "--json", "--force", path],
        env={**os.environ, "PYTHONPATH": TOP},
        capture_output=True,
        check=True,
    )
    result = {row["name"]: row["outcome"] for row in json.loads(ran.stdout)["rows"]}

    assert path.read_bytes().count(0) == path.stat().st_size
    assert result["execveat"] != "ends with status 3"
    assert result["ftruncate larger"] == f"ok, size {2 * SIZE}"
    assert result["FICLONE"] == "not here: takes two files"
    after = path.stat()
    assert stat.S_IMODE(after.st_mode) & 0o777 == 0o751
    assert (after.st_ino, after.st_uid, after.st_gid) == (
        *(before.st_ino, before.st_uid, before.st_gid),
    )
    assert os.listxattr(path) == []
    assert os.listdir(tmp_path) == ["full"]


def test_a_file_with_content_is_not_run(tmp_path: Path) -> None:
    """The same is true of a file that cannot be emptied."""
    path = tmp_path / "script"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o700)

    class Stubborn(GivenFile):
        def make(self) -> int:
            return os.open(self.name, os.O_RDWR)

    for row_ in table.ROWS:
        if row_.group == "exec":
            assert attempt(Stubborn(str(path)), row_) == "not here: is not empty"


def test_a_size_that_cannot_change_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "sized"
    path.write_bytes(b"x")

    class Sized(GivenFile):
        def _open(self) -> int:
            return os.open(self.name, os.O_RDONLY)

    first = next(row for row in table.ROWS if row.name == "first size")
    assert attempt(Sized(str(path)), first) == "not here: has a size already"


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOENT, "No such file or directory"), (errno.EACCES, "Permission denied")],
)
def test_where_there_is_no_kvm_there_is_no_guest_memfd(
    monkeypatch: pytest.MonkeyPatch, number: int, expected: str
) -> None:
    def refuse(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        ProbeError, match=f"no guest_memfd here: .*/dev/kvm: {expected}"
    ):
        GuestMemfd("guest_memfd", 0).make()
