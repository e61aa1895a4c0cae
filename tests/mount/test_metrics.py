"""`inaccfs metrics` and `inaccfs report` of a real mount."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from inaccfs import __version__
from inaccfs.control.messages import Stats
from inaccfs.syscalls import PUNCH, fallocate
from tests.mount.support import (
    PAGE,
    cli,
    complaint,
    doomed,
    kill,
    mounted,
    new_file,
    opened,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    with mounted() as made:
        yield made


def samples(text: str) -> dict[str, float]:
    """The samples by name; each has the mountpoint as its label."""
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return {
        sample.name: sample.value for family in families for sample in family.samples
    }


def test_prometheus_reads_what_has_been_counted(mount: Mount) -> None:
    before = samples(cli("metrics", mount.path).stdout)
    with opened(new_file(mount.path / "f", 4 * PAGE)) as fd:
        fallocate(fd, 0, 0, 2 * PAGE)
        fallocate(fd, PUNCH, 0, PAGE)
    text = cli("metrics", mount.path).stdout
    found = samples(text)
    assert found["inaccfs_fallocates_total"] - before["inaccfs_fallocates_total"] == 2
    assert found["inaccfs_punches_total"] - before["inaccfs_punches_total"] == 1
    assert found["inaccfs_allocated_bytes"] == PAGE
    assert found["inaccfs_peers"] == 1
    assert found["inaccfs_mount_info"] == 1
    assert f'mountpoint="{mount.path}"' in text
    assert f'version="{__version__}"' in text
    names = {name.removeprefix("inaccfs_").removesuffix("_total") for name in found}
    assert set(Stats.__struct_fields__) < names


def test_any_mountpoint_is_a_label(tmp_path: Path) -> None:
    """As the text format wants it: after a backslash there is one of three."""
    mountpoint = tmp_path / os.fsdecode(b'q"\\\n\xff\x1b[2J x')
    mountpoint.mkdir()
    file = tmp_path / "x.prom"
    with mounted(mountpoint):
        printed = cli("metrics", mountpoint).stdout
        cli("metrics", mountpoint, "-o", file)
    assert "inaccfs_peers" in samples(printed)
    for text in (printed, file.read_text(encoding="utf-8")):
        labels = set(re.findall(r'\{mountpoint=("(?:[^"\\\n]|\\[\\"n])*")\}', text))
        assert len(labels) == 1, labels
        samples_of = [line for line in text.splitlines() if line[0] != "#"]
        assert all("mountpoint=" in line for line in samples_of)
        assert text.count("{mountpoint=") == len(samples_of) - 1


def test_a_file_is_replaced_as_a_whole(mount: Mount, tmp_path: Path) -> None:
    file = tmp_path / "inaccfs.prom"
    file.write_text("old")
    assert cli("metrics", mount.path, "-o", file).stdout == ""
    assert "inaccfs_peers" in samples(file.read_text())
    assert list(tmp_path.iterdir()) == [file]
    assert "cannot write" in complaint(
        "metrics", mount.path, "-o", tmp_path / "none" / "x.prom"
    )


def test_what_is_no_file_is_written_to_and_stays(mount: Mount, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert cli("metrics", mount.path, "-o", fifo).stdout == ""
        assert b"inaccfs_peers" in os.read(reader, 1 << 16)
    finally:
        os.close(reader)
    assert fifo.is_fifo()
    assert "No space left" in complaint("metrics", mount.path, "-o", full)
    assert full.is_symlink()


@pytest.mark.parametrize("command", ["metrics", "report"])
def test_what_is_no_mount_is_one_line(command: str, tmp_path: Path) -> None:
    assert "inaccfs mount" in complaint(command, tmp_path)
    assert "inaccfs mount" in complaint(command, "/proc")


def test_a_report_has_all_that_one_asks_for_first(mount: Mount) -> None:
    text = cli("report", mount.path).stdout
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles[:3] == ["## versions", "## inaccfs doctor", f"## mount {mount.path}"]
    for word in (__version__, "kernel", "/dev/fuse", "pfns"):
        assert word in text
    # Without a mountpoint it reports all mounts.
    assert f"## mount {mount.path}\n" in cli("report").stdout


def test_a_report_of_a_dead_mount_says_so() -> None:
    with doomed() as mount:
        kill(mount)
        assert "its daemon is dead" in cli("report", mount.path).stdout
        assert "its daemon is dead" in complaint("metrics", mount.path)


def test_a_report_has_the_end_of_the_log(tmp_path: Path) -> None:
    log, mountpoint = tmp_path / "log", tmp_path / "mnt"
    mountpoint.mkdir()
    cli("mount", "-v", "--log", log, mountpoint)
    try:
        with log.open("a") as file:
            file.write("x" * (64 << 10) + "\n\x1b[2J the end\n")
        text = cli("report", mountpoint).stdout
        assert f"## log {log}\n\n...\n" in text
        # Control characters are escaped.
        assert text.rstrip().endswith("\\x1b[2J the end")
    finally:
        cli("umount", mountpoint)
