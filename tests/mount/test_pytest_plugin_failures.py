"""The pytest plugin when tests or daemons fail: logs, reports, and what is left."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from tests.mount import support
from tests.mount.plugin_runs import PLAIN, report_of, run_tests

pytest_plugins = ("pytester",)
pytestmark = pytest.mark.fuse

# A peer that does not answer is disconnected, and the log says so.
LOGGING: Final = """
def log_something(mount, shim):
    answered = threading.Event()
    with open(mount.path / "guest", "wb") as file, shim.file(file.fileno()) as memory:
        notifier = memory.register_notifier(lambda start, end: answered.wait())
        os.posix_fallocate(file.fileno(), 0, 4096)
        answered.set()
        with pytest.raises(ConnectionError):
            notifier.unregister()
"""


def test_a_failed_test_shows_the_log_and_others_do_not(
    pytester: pytest.Pytester,
) -> None:
    source = LOGGING + dedent(
        """
        pytestmark = pytest.mark.inaccfs(ack_timeout=0.01)

        def test_fails(inaccfs_mount, inaccfs_shim):
            log_something(inaccfs_mount, inaccfs_shim)
            assert not "the test's own failure"

        def test_passes(inaccfs_mount, inaccfs_shim):
            log_something(inaccfs_mount, inaccfs_shim)

        def test_fails_silently(inaccfs_mount):
            assert not "as well"

        def test_fails_without_a_mount():
            assert not "either"

        @pytest.fixture
        def broken(inaccfs_mount, inaccfs_shim):
            log_something(inaccfs_mount, inaccfs_shim)
            assert not "a fixture of theirs"

        def test_fixture(broken): pass

        @pytest.fixture
        def ends_badly(inaccfs_mount):
            yield
            assert not "the end of a fixture of theirs"

        def test_ends(ends_badly, inaccfs_mount, inaccfs_shim):
            log_something(inaccfs_mount, inaccfs_shim)
        """
    )
    result = run_tests(pytester, source, *PLAIN)
    result.assert_outcomes(failed=3, passed=2, errors=2)
    output = result.stdout.str()
    for title in ("test_fails", "ERROR at setup of test_fixture"):
        report = report_of(output, f"_ {title}")
        assert "- inaccfs: the daemon's log -" in report
        assert "no answer to an event" in report, report
    assert "no answer to an event" in report_of(
        output, "ERROR at teardown of test_ends"
    )
    assert "(it has logged nothing)" in report_of(output, "_ test_fails_silently")
    assert "daemon's log" not in report_of(output, "_ test_fails_without_a_mount")
    # The console has no log of a test that has passed.
    assert output.count("daemon's log") == 4


def test_a_daemon_that_ends_badly_fails_the_test(pytester: pytest.Pytester) -> None:
    source = """
        def test_killed(inaccfs_mount, inaccfs_shim):
            inaccfs_mount.process.kill()

        def test_stuck(inaccfs_mount):
            os.kill(inaccfs_mount.pid, signal.SIGABRT)

        def test_killed_under_a_notifier(inaccfs_mount, inaccfs_shim):
            fd = os.open(inaccfs_mount.path / "guest", os.O_RDWR | os.O_CREAT)
            inaccfs_shim.file(fd).register_notifier(print)
            inaccfs_mount.process.kill()

        def test_killed_under_a_vm(inaccfs_mount, inaccfs_shim, inaccfs_vm):
            fd = inaccfs_shim.memfd_create("guest", size=4096)
            inaccfs_vm.set_user_memory_region(0, 0, 4096, private_fd=fd, flags=4)
            inaccfs_mount.process.kill()

        def test_fails_and_is_killed(inaccfs_mount):
            inaccfs_mount.process.kill()
            assert not "the test's own failure"

        def test_next(inaccfs_mount):
            assert inaccfs_mount.status().files == 0
    """
    result = run_tests(pytester, source, *PLAIN)
    result.assert_outcomes(passed=5, failed=1, errors=5)
    output = result.stdout.str()
    for test, name in {
        "killed": "SIGKILL",
        "stuck": "SIGABRT",
        "killed_under_a_notifier": "SIGKILL",
        "killed_under_a_vm": "SIGKILL",
        "fails_and_is_killed": "SIGKILL",
    }.items():
        report = report_of(output, f"ERROR at teardown of test_{test}")
        assert re.match(
            rf"_*\ninaccfs: the daemon of \S+ was killed by {name}\n", report
        )
        assert "daemon's log" in report


# Breaks daemons as bugs would; a harmless option says which daemon.
BROKEN: Final = """
import sys

if "fsname=bug" in sys.orig_argv:
    from inaccfs.semantics import V8

    V8.check_fallocate = lambda *_: 1 / 0
if "fsname=status" in sys.orig_argv:
    import atexit, os

    atexit.register(os._exit, 3)
"""


def test_a_bug_of_the_daemon_fails_the_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(sitecustomize=BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    result = run_tests(
        pytester,
        """
        @pytest.mark.inaccfs(options="fsname=status")
        def test_status(inaccfs_mount): pass

        @pytest.mark.inaccfs(options="fsname=bug")
        def test_bug(inaccfs_mount):
            with open(inaccfs_mount.path / "guest", "wb") as file:
                with pytest.raises(OSError):
                    os.posix_fallocate(file.fileno(), 0, 4096)
        """,
        *PLAIN,
    )
    result.assert_outcomes(passed=2, errors=2)
    output = result.stdout.str()
    report = report_of(output, "ERROR at teardown of test_status")
    assert "ended with status 3" in report
    report = report_of(output, "ERROR at teardown of test_bug")
    assert "has met a bug: see its log" in report
    assert "ZeroDivisionError" in report


@support.needs_root
def test_copies_of_a_mount_do_not_keep_its_daemon(pytester: pytest.Pytester) -> None:
    source = """
        import subprocess

        copy = {copy!r}

        def test_copied(inaccfs_mount):
            os.mkdir(copy)
            subprocess.run(["mount", "--bind", inaccfs_mount.path, copy], check=True)

        def test_gone():
            with pytest.raises(OSError):
                os.statvfs(copy)
            subprocess.run(["umount", copy], check=True)
    """
    source = source.format(copy=str(pytester.path / "copy"))
    run_tests(pytester, source, *PLAIN).assert_outcomes(passed=2)


def test_a_run_that_is_killed_leaves_nothing(pytester: pytest.Pytester) -> None:
    report = pytester.path / "report"
    source = f"""
        def test_killed(inaccfs_mount, inaccfs_vm):
            with open({str(report)!r}, "w") as file:
                print(inaccfs_mount.pid, inaccfs_mount.path, file=file)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    run_tests(pytester, source, *PLAIN)
    pid, path = report.read_text().split()
    support.wait_for_exit(int(pid))
    assert not support.is_mounted(path)
    assert not Path(path).parent.exists()
