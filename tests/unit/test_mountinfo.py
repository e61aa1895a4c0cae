"""The kernel's list of mounts, and which of them are inaccfs's."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest

from inaccfs import mountinfo
from inaccfs.errors import NotMountedError
from inaccfs.fuse import finding
from inaccfs.fuse.finding import FSTYPE
from inaccfs.mountinfo import MountInfo

MOUNTINFO = rb"""22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:41 / /mnt/with\040space rw,nosuid - fuse.inaccfs inaccfs rw,user_id=0
41 22 0:42 / /mnt/tab\011nl\012bs\134 rw shared:2 master:1 - fuse.inaccfs - rw
42 22 0:43 / /mnt/other rw - tmpfs tmpfs rw
43 22 0:44 / /mnt/covered rw - fuse.inaccfs inaccfs rw
44 43 0:45 / /mnt/covered rw - tmpfs tmpfs rw
45 22 0:46 / /mnt/twice rw - fuse.inaccfs inaccfs rw
46 45 0:47 / /mnt/twice rw - fuse.inaccfs inaccfs rw
47 22 0:48 / /mnt/\303\274 rw - fuse.inaccfs inaccfs rw
"""


@pytest.fixture
def _mountinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_open(path: str, *mode: str) -> Any:
        assert path == "/proc/self/mountinfo"
        return io.BytesIO(MOUNTINFO)

    monkeypatch.setattr(mountinfo, "open", fake_open, raising=False)


@pytest.mark.usefixtures("_mountinfo")
def test_mounts_are_listed_oldest_first_and_unescaped() -> None:
    assert finding.mounts() == [
        MountInfo("0:41", "/mnt/with space", FSTYPE, 40, 22, "rw,user_id=0"),
        MountInfo("0:42", "/mnt/tab\tnl\nbs\\", FSTYPE, 41, 22, "rw"),
        MountInfo("0:44", "/mnt/covered", FSTYPE, 43, 22, "rw"),
        MountInfo("0:46", "/mnt/twice", FSTYPE, 45, 22, "rw"),
        MountInfo("0:47", "/mnt/twice", FSTYPE, 46, 45, "rw"),
        MountInfo("0:48", "/mnt/ü", FSTYPE, 47, 22, "rw"),
    ]


@pytest.mark.usefixtures("_mountinfo")
def test_a_mount_is_found_by_its_path_and_on_top() -> None:
    assert finding.find("/mnt/with space") == MountInfo(
        "0:41", "/mnt/with space", FSTYPE, 40, 22, "rw,user_id=0"
    )
    assert finding.find("/mnt/./twice/").device == "0:47"
    for path in ("/mnt/covered", "/mnt/other", "/mnt/nothing", "/"):
        with pytest.raises(NotMountedError):
            finding.find(path)


@pytest.mark.usefixtures("_mountinfo")
def test_all_mounts_are_read_and_the_topmost_counts() -> None:
    assert [mount.device for mount in mountinfo.read()] == [
        "0:20",
        *(f"0:{number}" for number in range(41, 49)),
    ]
    covered = MountInfo("0:45", "/mnt/covered", "tmpfs", 44, 43, "rw")
    assert mountinfo.topmost("/mnt/covered") == covered
    assert mountinfo.topmost("/mnt") is None
    assert mountinfo.topmost("/mnt/covered/") is None


def test_mounts_of_this_machine_are_read() -> None:
    proc = mountinfo.topmost("/proc")
    assert proc is not None
    assert proc.fstype == "proc"
    found = os.stat("/proc").st_dev
    assert proc.device == f"{os.major(found)}:{os.minor(found)}"


@pytest.mark.usefixtures("_mountinfo")
def test_mounts_below_a_path_are_found() -> None:
    assert mountinfo.below("/mnt/covered") == ["/mnt/covered"] * 2
    assert len(mountinfo.below("/mnt")) == 8
    assert len(mountinfo.below("/")) == 9
    assert mountinfo.below("/mnt/cov") == []


@pytest.mark.usefixtures("_mountinfo")
def test_a_mount_that_is_covered_is_distinguished() -> None:
    with pytest.raises(NotMountedError, match="that a tmpfs covers: umount /mnt/cov"):
        finding.find("/mnt/covered")
