"""The pytest plugin as other projects use it: pytest runs tests of such a project.

Each run is a separate process and costs a second, so one run has many tests.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import Final

import pytest

from tests.mount import support
from tests.mount.namespaces import private_namespace
from tests.mount.plugin_runs import PLAIN, STRICT, report_of, run_tests

pytest_plugins = ("pytester",)
pytestmark = pytest.mark.fuse

DOCS: Final = Path(__file__).parents[2] / "docs" / "testing-with-inaccfs.md"


# --- the fixtures -------------------------------------------------------------


def test_a_test_has_a_mount_of_its_own_which_ends_with_it(
    pytester: pytest.Pytester,
) -> None:
    result = run_tests(
        pytester,
        """
        seen = []

        def test_mount(inaccfs_mount):
            file = inaccfs_mount.path / "guest"
            file.touch()
            os.truncate(file, 1 << 20)
            seen.append(inaccfs_mount)

        def test_gone():
            (mount,) = seen
            assert mount.process.returncode == 0
            assert not os.path.exists(f"/proc/{mount.pid}")
            assert not mount.path.exists() and not mount.log.exists()

        def test_another(inaccfs_mount):
            assert inaccfs_mount.path != seen[0].path
            assert not os.listdir(inaccfs_mount.path)

        def test_the_shim_is_that_of_the_mount(inaccfs_mount, inaccfs_shim):
            assert inaccfs_shim.query_status().mountpoint == str(inaccfs_mount.path)
            os.close(inaccfs_shim.memfd_create("guest", size=1 << 20))
            seen.append(inaccfs_shim)

        def test_the_shim_is_closed():
            with pytest.raises(OSError, match="closed"):
                seen[-1].query_stats()

        def test_open_files_do_not_keep_the_daemon(inaccfs_mount):
            os.open(inaccfs_mount.path / "guest", os.O_RDWR | os.O_CREAT)

        def test_unmounted_by_the_test_itself(inaccfs_mount):
            from inaccfs import ending
            ending.unmount(str(inaccfs_mount.path), lazy=False)
        """,
        *PLAIN,
    )
    result.assert_outcomes(passed=7)


def test_markers_are_options_and_the_closest_wins(pytester: pytest.Pytester) -> None:
    result = run_tests(
        pytester,
        """
        pytestmark = pytest.mark.inaccfs(size="8m", mode=0o750)

        def test_module(inaccfs_mount):
            assert inaccfs_mount.status().size == 8 << 20

        @pytest.mark.inaccfs(size="16m")
        class TestClass:
            def test_class(self, inaccfs_mount):
                assert inaccfs_mount.status().size == 16 << 20

            @pytest.mark.inaccfs(size="32m", pfn_source="simulated")
            def test_function(self, inaccfs_mount, inaccfs_shim):
                assert inaccfs_mount.status().size == 32 << 20
                assert inaccfs_shim.query_status().pfn_source == "simulated"
                assert inaccfs_mount.path.stat().st_mode & 0o777 == 0o750

        @pytest.mark.parametrize("wanted", [
            pytest.param(4, marks=pytest.mark.inaccfs(size="4m")), 8,
        ])
        def test_parameter(inaccfs_mount, wanted):
            assert inaccfs_mount.status().size == wanted << 20

        def test_without_a_mount():
            pass
        """,
        *PLAIN,
    )
    result.assert_outcomes(passed=6)


def test_the_marker_and_the_fixtures_are_documented(pytester: pytest.Pytester) -> None:
    ran = pytester.runpytest_subprocess(*PLAIN, "--markers")
    ran.stdout.fnmatch_lines(["@pytest.mark.inaccfs(**options): how *"])
    ran = pytester.runpytest_subprocess(*PLAIN, "--fixtures")
    ran.stdout.fnmatch_lines_random(
        [f"inaccfs_{name} -- *" for name in ("mount", "shim", "vm")]
    )
    ran.stdout.no_fnmatch_line("*inaccfs_aio_shim*")


# --- markers that are wrong ---------------------------------------------------


def test_a_wrong_marker_is_reported_in_one_line(pytester: pytest.Pytester) -> None:
    result = run_tests(
        pytester,
        """
        @pytest.mark.inaccfs(sice="64m")
        def test_name(): pass

        @pytest.mark.inaccfs("64m")
        def test_position(inaccfs_mount): pass

        @pytest.mark.inaccfs(size="64q")
        def test_value(inaccfs_shim): pass

        @pytest.mark.inaccfs(mode="0700")
        def test_type(inaccfs_mount): pass

        @pytest.mark.inaccfs(options="no-such")
        def test_mount_option(inaccfs_mount): pass
        """,
        *PLAIN,
    )
    result.assert_outcomes(errors=5)
    output = result.stdout.str()
    for test, message in {
        "name": "inaccfs: marker inaccfs has no option 'sice', only mountpoint, "
        "backing, size, huge",
        "position": "inaccfs: marker inaccfs: '64m' has no name: write size='64m'",
        "value": "inaccfs: cannot mount: size '64q' is not a size",
        "type": "inaccfs: cannot mount with {'mode': '0700'}: ",
        "mount_option": "inaccfs: cannot mount: unknown mount option 'no-such'",
    }.items():
        report = report_of(output, f"ERROR at setup of test_{test}")
        lines = report.strip("_\n").splitlines()
        assert len(lines) == 1, report
        assert lines[0].startswith(message)


# --- trio ---------------------------------------------------------------------


def test_with_pytest_trio(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_trio")
    source = """
        import trio

        seen = []

        @pytest.mark.trio
        @pytest.mark.inaccfs(size="8m")
        async def test_async(inaccfs_aio_shim, inaccfs_mount):
            status = await inaccfs_aio_shim.query_status()
            assert status.mountpoint == str(inaccfs_mount.path)
            assert status.size == 8 << 20
            seen.append(inaccfs_mount)

        def test_gone():
            assert seen[0].process.returncode == 0

        @pytest.mark.trio
        async def test_blocking_in_async(inaccfs_shim):
            assert inaccfs_shim.query_stats().peers == 1

        def test_blocking(inaccfs_shim):
            assert inaccfs_shim.query_stats().peers == 1

        @pytest.mark.trio
        async def test_punch(inaccfs_aio_shim, inaccfs_mount):
            events = []
            with open(inaccfs_mount.path / "guest", "wb") as file:
                async with await inaccfs_aio_shim.file(file.fileno()) as memory:
                    async with await memory.register_notifier(
                        lambda *pages: events.append(pages)
                    ):
                        await trio.to_thread.run_sync(
                            os.posix_fallocate, file.fileno(), 0, 8192
                        )
            assert events == [(0, 2)]

        @pytest.mark.trio
        async def test_fails(inaccfs_aio_shim):
            assert not "the test's own failure"

        @pytest.mark.trio
        async def test_killed(inaccfs_aio_shim, inaccfs_mount):
            inaccfs_mount.process.kill()
    """
    result = run_tests(pytester, source, *STRICT)
    result.assert_outcomes(passed=6, failed=1, errors=1)
    output = result.stdout.str()
    assert "- inaccfs: the daemon's log -" in report_of(output, "_ test_fails")
    assert "was killed by SIGKILL" in report_of(
        output, "ERROR at teardown of test_killed"
    )


# --- tests without the plugin-------------------------------------------------


def test_tests_that_do_not_use_it_do_not_import_much(
    pytester: pytest.Pytester,
) -> None:
    source = """
        import sys

        def test_nothing():
            here = {name for name in sys.modules if name.startswith("inaccfs.")}
            assert "inaccfs.pytest_plugin" in here
            assert not here & {"inaccfs.client", "inaccfs.kvm", "inaccfs.daemon"}
            assert not {"trio", "msgspec", "pyfuse3", "pytest_trio"} & set(sys.modules)
    """
    options = (*PLAIN, "-p", "no:hypothesispytest")
    run_tests(pytester, source, *options).assert_outcomes(passed=1)


@support.needs_root
def test_without_a_device_tests_are_skipped_with_the_reason(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile("def test_skipped(inaccfs_shim): pass")
    devices = "mount -t tmpfs none /dev; mknod /dev/null c 1 3; chmod 666 /dev/null"
    with private_namespace(devices) as namespace:
        result = namespace.run(*pytest_command(pytester.path))
    assert "1 skipped" in result.stdout
    assert (
        "inaccfs cannot mount here: /dev/fuse: No such file or directory"
        in result.stdout
    )


@support.needs_root
def test_without_the_capability_tests_are_skipped_with_the_reason(
    pytester: pytest.Pytester,
) -> None:
    """Root of a container lacks it, for example."""
    pytester.makepyfile("def test_skipped(inaccfs_shim): pass")
    less = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    result = support.run(*less, *pytest_command(pytester.path))
    assert "1 skipped" in result.stdout
    assert "root without CAP_SYS_ADMIN may not mount" in result.stdout


def pytest_command(path: Path) -> list[str]:
    """The command that runs the tests in *path* from any directory, and shows skips."""
    root = f"--rootdir={path}"
    return [sys.executable, "-m", "pytest", *PLAIN, "-rs", root, str(path)]


# --- the documentation --------------------------------------------------------


def samples() -> list[str]:
    """The indented blocks of the page that have tests in them."""
    text = DOCS.read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", text, flags=re.MULTILINE)
    return [dedent(block) for block in blocks if "def test_" in block]


def test_the_samples_run(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_trio")
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    made = samples()
    assert made
    for number, sample in enumerate(made):
        pytester.makepyfile(**{f"test_sample_{number}": sample})
    result = pytester.runpytest_subprocess(*STRICT)
    passed = sum(sample.count("def test_") for sample in made)
    result.assert_outcomes(passed=passed)
