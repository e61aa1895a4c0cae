"""The status of a mount: how it is sent, and what `inaccfs status` shows."""

from __future__ import annotations

import msgspec
import pytest

from inaccfs import cli, launch, status
from inaccfs.cli import status as status_command
from inaccfs.cli.units import size_text
from inaccfs.errors import DeadDaemonError, NoAnswerError, NoEntryError, NotMountedError
from inaccfs.fuse import finding
from inaccfs.fuse.finding import FSTYPE
from inaccfs.mountinfo import MountInfo

STATUS = status.Status(
    mountpoint="/mnt",
    backing="private tmpfs",
    size=0,
    page_size=4096,
    files=2,
    allocated_pages=3,
    semantics="v8",
    sealed=False,
    mmap="not sealed (needs root)",
    pfn_source="pagemap",
    pinning="io_uring",
    pid=42,
    control="/run/inaccfs/control",
    log=None,
    version="1",
)


def test_a_status_survives_its_journey() -> None:
    assert status.decode(status.encode(STATUS)) == STATUS


def test_the_status_of_another_version_is_reported() -> None:
    with pytest.raises(msgspec.ValidationError):
        status.decode(b'{"mountpoint": 5}')


def ask(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, object], *words: str
) -> int:
    """`inaccfs status` where each mount has one of these *answers*."""
    there = [
        MountInfo(f"0:{at}", path, FSTYPE, at, 1, "rw")
        for at, path in enumerate(answers)
    ]

    def read(path: str) -> object:
        answer = answers[path]
        if answer is None:
            there[:] = [mount for mount in there if mount.path != path]
            raise NotMountedError(f"{path} is not an inaccfs mount")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(finding, "mounts", lambda: list(there))
    monkeypatch.setattr(launch, "read_status", read)
    return cli.main(["status", *words])


HIDDEN = NoEntryError("/b: Permission denied: the mount is another user's")


def test_a_mount_that_goes_away_meanwhile_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(monkeypatch, {"/gone": None, "/mnt": STATUS}) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "gone" not in captured.out
    assert ask(monkeypatch, {"/gone": None}) == 0
    assert capsys.readouterr() == ("no inaccfs mounts\n", "")
    assert ask(monkeypatch, {"/gone": None}, "--json") == 0
    assert capsys.readouterr() == ("[]\n", "")


def test_a_mount_that_may_not_be_looked_at_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(monkeypatch, {"/mnt": STATUS, "/b": HIDDEN}) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.endswith(
        "\n\n/b: Permission denied: the mount is another user's\n"
    )
    assert ask(monkeypatch, {"/mnt": STATUS, "/b": HIDDEN}, "--json") == 0
    captured = capsys.readouterr()
    assert msgspec.json.decode(captured.out, type=list[status.Status]) == [STATUS]
    assert captured.err.startswith("inaccfs: /b: Permission denied")


def test_a_mount_that_is_covered_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    covered = NotMountedError("/b is not an inaccfs mount")
    assert ask(monkeypatch, {"/b": covered}) == 0
    assert capsys.readouterr() == ("/b: another mount covers it\n", "")


@pytest.mark.parametrize("failure", [NoAnswerError, DeadDaemonError])
def test_a_daemon_that_does_not_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: type[Exception],
) -> None:
    assert ask(monkeypatch, {"/b": failure("/b: \x1b"), "/mnt": STATUS}) == 1
    captured = capsys.readouterr()
    assert captured.err == "inaccfs: /b: \\x1b\n"
    assert captured.out.startswith("/mnt\n")


def test_a_status_for_people() -> None:
    assert status_command.describe(STATUS).splitlines() == [
        "/mnt",
        "  backing    private tmpfs",
        "  size       no limit",
        "  files      2",
        "  allocated  3 pages of 4 KiB",
        "  semantics  v8",
        "  mmap       not sealed (needs root)",
        "  pfns       pagemap, pinned by io_uring",
        "  pid        42",
        "  control    /run/inaccfs/control",
        "  log        standard error",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2 << 20, "2 MiB"),
        (3 << 30, "3 GiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size_text(count) == text
