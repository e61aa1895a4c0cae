"""The probe itself: children that fail, outcomes, and attempts."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NoReturn

import pytest

from inaccfs import errnos, mmcalls, uring
from inaccfs.probe import calls, children, outcomes, rings, table
from inaccfs.probe.attempts import Subject, attempt
from inaccfs.probe.outcomes import NotHere
from inaccfs.probe.targets import Memfd, ProbeError
from tests.probe.support import PAGE, SIZE, row

if TYPE_CHECKING:
    from collections.abc import Callable

# Idle threads of earlier tests have no lock that a child needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter time limit for calls that hang."""
    monkeypatch.setattr(children, "LIMIT", 0.1)


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
