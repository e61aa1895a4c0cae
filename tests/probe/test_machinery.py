"""The probe itself: children that fail, the files that it makes, and its report."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import signal
import stat
import subprocess
import sys
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

import inaccfs
from inaccfs import errnos, mmcalls, uring
from inaccfs.probe import calls, children, naming, outcomes, report, rings, table
from inaccfs.probe.attempts import Row, Subject, attempt, rows
from inaccfs.probe.outcomes import NotHere
from inaccfs.probe.table import Result
from inaccfs.probe.targets import (
    Directory,
    GivenFile,
    GuestMemfd,
    Memfd,
    ProbeError,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# Idle threads of earlier tests have no lock that a child needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

TOP = str(Path(inaccfs.__file__).parent.parent)
PAGE = mmap.PAGESIZE
SIZE = 4 * PAGE


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter time limit for calls that hang."""
    monkeypatch.setattr(children, "LIMIT", 0.1)


def row(call: Callable[[Subject], str | None]) -> Row:
    return rows("group", {"name": call})[0]


def hang() -> NoReturn:
    """Wait for a signal that never comes."""
    while True:
        signal.pause()


def raise_(exc: BaseException) -> str:
    raise exc


# --- children -------------------------------------------------------------------------


def test_a_child_returns_the_result_of_its_work() -> None:
    def work(say: Callable[[str], None]) -> str:
        say("one")
        say("two")
        return "done"

    ending = children.run(work)
    assert (ending.stages, ending.result) == (["one", "two"], "done")


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGKILL, signal.SIGSYS])
def test_a_child_may_be_killed(number: signal.Signals) -> None:
    def work(say: Callable[[str], None]) -> str:
        say("so far")
        os.kill(os.getpid(), number)
        return "no"

    assert children.run(work) == (["so far"], None, number.name)


@pytest.mark.usefixtures("impatient")
def test_a_child_that_hangs_is_killed() -> None:
    def work(say: Callable[[str], None]) -> str:
        say(str(os.getpid()))
        # The child ignores SIGTERM, too.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hang()

    stages, result, fate = children.run(work)
    assert (result, fate) == (None, "hangs")
    with pytest.raises(ProcessLookupError):
        os.kill(int(stages[0]), 0)


def test_a_child_may_run_another_program() -> None:
    def work(say: Callable[[str], None]) -> str:
        say("runs")
        os.execv("/bin/sh", ["sh", "-c", "exit 3"])

    assert children.run(work) == (["runs"], None, "ends with status 3")


def test_a_bug_in_a_child_is_a_bug_here() -> None:
    with pytest.raises(children.ChildFailedError, match="ZeroDivisionError"):
        children.run(lambda _say: str(1 // 0))


def test_a_process_may_have_more_fds_than_select_takes() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip(f"the hard limit of open files is {hard}")
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
        fd = -1
        while fd < 1023:
            fd = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, fd)
        assert children.run(lambda _say: "done").result == "done"


def test_a_child_leaves_no_fd_and_no_zombie() -> None:
    before = os.listdir("/proc/self/fd")
    pid = children.run(lambda _say: str(os.getpid())).result
    with suppress(children.ChildFailedError):
        children.run(lambda _say: raise_(ValueError()))
    assert os.listdir("/proc/self/fd") == before
    assert pid is not None
    assert not os.path.exists(f"/proc/{pid}")


# --- outcomes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exc", "name"),
    [
        (OSError(errno.EINVAL, ""), "EINVAL"),
        (OSError(errno.ENOTSUP, ""), "EOPNOTSUPP"),
        (OSError(errno.EWOULDBLOCK, ""), "EAGAIN"),
        (OSError(errnos.EHWPOISON, ""), "EHWPOISON"),
        (OSError(4095, ""), "errno 4095"),
        (OSError(errno.ENOSYS, ""), "not here: the kernel has no such call"),
        (NotHere("no such thing"), "not here: no such thing"),
    ],
)
def test_an_exception_is_reported_by_name(exc: Exception, name: str) -> None:
    assert outcomes.of(lambda: raise_(exc)) == name


def test_a_call_that_returns_none_is_ok() -> None:
    assert outcomes.of(lambda: None) == "ok"
    assert outcomes.of(lambda: "ok 8 bytes") == "ok 8 bytes"


def test_rows_that_were_not_tried_do_not_differ() -> None:
    assert outcomes.differ("ok", "EINVAL")
    assert not outcomes.differ("ok", "ok")
    assert not outcomes.differ("ok", "not here: why")
    assert not outcomes.differ("not here: why", "not here: for another reason")


# --- attempts -------------------------------------------------------------------------


def test_a_row_begins_with_four_pages_of_which_two_are_allocated() -> None:
    def look(subject: Subject) -> str:
        found = os.fstat(subject.fd)
        return f"{subject.size} {subject.unit} {found.st_size} {found.st_blocks * 512}"

    assert attempt(Memfd("memfd"), row(look)) == f"{SIZE} {PAGE} {SIZE} {2 * PAGE}"


def test_no_row_resizes_a_file_unseen() -> None:
    def grow_and_fail(subject: Subject) -> None:
        os.ftruncate(subject.fd, 8 * PAGE)
        raise OSError(errno.EIO, "")

    assert attempt(Memfd("memfd"), row(grow_and_fail)) == f"EIO, size {8 * PAGE}"


def test_a_mapping_that_kills_differs_from_one_that_is_refused() -> None:
    def touch(subject: Subject) -> str:
        subject.say("ok, read")
        address = mmcalls.mmap(subject.fd, SIZE, PAGE, mmap.PROT_READ, mmap.MAP_PRIVATE)
        ctypes.string_at(address, 1)
        return "ok, read zeros"

    assert attempt(Memfd("memfd"), row(touch)) == "ok, read SIGBUS"


@pytest.mark.usefixtures("impatient")
def test_a_row_may_hang() -> None:
    def work(subject: Subject) -> None:
        subject.say("ok, read")
        hang()

    assert attempt(Memfd("memfd"), row(lambda _subject: hang())) == "hangs"
    assert attempt(Memfd("memfd"), row(work)) == "ok, read hangs"


class Broken(Memfd):
    """A target whose files cannot be made."""

    def __init__(self, make: Callable[[], int]) -> None:
        super().__init__("broken")
        self._make = make

    def make(self) -> int:
        return self._make()


def test_a_row_without_a_file_was_not_tried() -> None:
    full = Broken(lambda: os.memfd_create("x" * 4096))
    assert attempt(full, row(lambda _subject: None)) == "not here: no file, EINVAL"


@pytest.mark.usefixtures("impatient")
def test_a_target_that_hangs_ends_the_probe() -> None:
    with pytest.raises(ProbeError, match=r"broken does not answer within 0\.1 seconds"):
        attempt(Broken(hang), row(lambda _subject: None))


def test_a_call_that_the_machine_lacks_costs_one_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with io_uring_disabled, on an unknown architecture, or with an old libc."""
    found = {row.name: row for row in table.ROWS}
    memfd = Memfd("memfd")

    with monkeypatch.context() as patch:
        patch.setattr(uring, "_SYS_IO_URING_SETUP", 100_000)
        result = attempt(memfd, found["io_uring read"])
        assert result == "not here: no io_uring, ENOSYS"
    with monkeypatch.context() as patch:
        patch.setattr(calls, "_NUMBERS", {})
        assert attempt(memfd, found["AIO pread"]).startswith("not here: the number of")
    with pytest.raises(NotHere, match="the C library has no nonsense"):
        calls._function("nonsense")


def test_an_operation_that_the_kernel_lacks_differs_from_one_that_fails() -> None:
    """io_uring returns EINVAL for both."""

    def submit(opcode: int) -> str | None:
        fd = os.memfd_create("inaccfs-test")
        rings.Ring().submit(rings.Operation(opcode=opcode, fd=fd, offset=PAGE))
        return f"size {os.fstat(fd).st_size}"

    def missing(opcode: int) -> str | None:
        return children.run(lambda _say: outcomes.of(lambda: submit(opcode))).result

    if missing(rings.FSYNC) == "not here: no io_uring, EPERM":
        pytest.skip("no io_uring")
    assert missing(rings.FSYNC) == "size 0"
    assert missing(200) == "not here: io_uring has no operation 200"


# --- files that a user names ----------------------------------------------------------


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


# --- the report -----------------------------------------------------------------------


class Named(Memfd):
    """A target with a name."""


def results(*found: tuple[str, ...], group: str = "read") -> list[Result]:
    return [
        Result(Row(group, name, lambda _subject: None, False), list(outcomes))
        for name, *outcomes in found
    ]


def test_differences_are_marked() -> None:
    shown = report.table(
        [Named("a"), Named("b")],
        [
            *results(("read", "EINVAL", "EINVAL"), ("pread", "ESPIPE", "ok 8 bytes")),
            *results(("FICLONE", "ok", "not here: why"), group="write"),
        ],
        None,
    )
    assert shown.splitlines() == [
        "           a       b",
        "",
        "read",
        "  read     EINVAL  EINVAL",
        "! pread    ESPIPE  ok 8 bytes",
        "",
        "write",
        "  FICLONE  ok      not here: why",
        "",
        "3 rows, 1 differ, 1 not tried",
    ]


def test_one_target_differs_from_nothing() -> None:
    shown = report.table([Named("a")], results(("read", "EINVAL")), None)
    assert shown.endswith("\n\n1 rows")
    assert "!" not in shown


@pytest.mark.parametrize("width", [200, 100, 80, 60, 47, 30])
def test_a_narrow_terminal_loses_nothing(width: int) -> None:
    rows = results(
        ("fallocate PUNCH_HOLE|KEEP_SIZE unaligned offset", "ok", "EOPNOTSUPP"),
        ("copy_file_range", "not here: a rather long reason", "ok, size 16384"),
    )
    shown = report.table([Named("guest_memfd"), Named("/mnt/guests/here")], rows, width)
    # No column is narrower than 12, so there is a narrowest table.
    assert max(map(len, shown.splitlines())) <= max(width, 42)
    words = shown.split()
    for word in ("unaligned", "offset", "rather", "reason", "16384", "EOPNOTSUPP"):
        assert word in words
    assert sum(line.startswith("! ") for line in shown.splitlines()) == 1


def test_the_report_says_that_one_file_is_used_for_all_rows() -> None:
    shown = report.table([GivenFile("f")], results(("read", "EINVAL")), None)
    assert shown.startswith("f: the same for all rows: ")


def test_names_that_are_no_text_are_shown() -> None:
    """Paths may have any bytes."""
    name = os.fsdecode(b"/mnt/\xff")
    report.table([Named(name)], results(("read", "ok")), None).encode()
    assert json.loads(report.as_json([Named(name)], results(("read", "ok"))))


def test_json_has_the_same() -> None:
    found = json.loads(
        report.as_json(
            [Named("a"), GivenFile("b")],
            results(("read", "ok", "EINVAL"), ("pread", "ok", "not here: why")),
        )
    )
    assert found["target"] == {"name": "a", "file": Target.origin}
    assert found["against"] == {"name": "b", "file": GivenFile.origin}
    assert found["rows"] == [
        {
            "group": "read",
            "name": "read",
            "outcome": "ok",
            "against": "EINVAL",
            "differs": True,
        },
        {
            "group": "read",
            "name": "pread",
            "outcome": "ok",
            "against": "not here: why",
            "differs": False,
        },
    ]
    alone = json.loads(report.as_json([Named("a")], results(("read", "ok"))))
    assert alone["against"] is None
    assert alone["rows"][0]["against"] is None
    assert alone["rows"][0]["differs"] is None


def test_rows_have_names_of_their_own_and_groups_hold_together() -> None:
    names = [row.name for row in table.ROWS]
    assert len(set(names)) == len(names)
    groups = [row.group for row in table.ROWS]
    assert len([group for group, _ in groupby(groups)]) == len(set(groups))
