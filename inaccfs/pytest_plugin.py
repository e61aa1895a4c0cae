"""Fixtures for the tests of other projects: a mount, a client, a VM, new for each test.

    @pytest.mark.inaccfs(size="64m", huge="always")
    def test_boot(inaccfs_mount, inaccfs_shim): ...

pytest finds this by the entry point `inaccfs`. It is imported in every run where the
package is installed, so it imports nothing of inaccfs before a test asks for a mount.
See docs/testing-with-inaccfs.md.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from typing import NoReturn, TextIO

    import inaccfs
    from inaccfs.client import Client
    from inaccfs.kvm import VM, Guest

_MARK: Final = "inaccfs"
_MARKER_LINE: Final = (
    f"{_MARK}(**options): how the fixtures of inaccfs mount for this test; "
    "the options of inaccfs.mounted(), such as size='64m', huge='always'"
)

# How long a daemon whose connection is lost may take to be seen dead.
_DYING_SECONDS: Final = 5.0


class _Log:
    """The log of a daemon; its file is removed with the mount, the text is kept."""

    def __init__(self, file: TextIO) -> None:
        # Closed when the daemon has ended.
        self._file: Final = file
        self._text = ""

    def read(self) -> str:
        """The log so far."""
        if not self._file.closed:
            self._file.seek(0)
            self._text = self._file.read()
        return self._text

    def finish(self) -> str:
        """The whole log: the daemon has ended."""
        text = self.read()
        self._file.close()
        return text


_LOG: Final = pytest.StashKey[_Log]()


# --- hooks ----------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; and the fixtures for trio, if pytest-trio is loaded."""
    config.addinivalue_line("markers", _MARKER_LINE)
    plugins = config.pluginmanager
    # It was loaded by its entry point, or by -p.
    if plugins.hasplugin("trio") or plugins.hasplugin("pytest_trio.plugin"):
        from inaccfs import pytest_trio_plugin

        plugins.register(pytest_trio_plugin, "inaccfs-trio")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose marker is wrong, also if it mounts nothing."""
    if item.get_closest_marker(_MARK) is not None:
        _options(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the daemon's log with a test that has failed."""
    report = yield
    log = item.stash.get(_LOG, None)
    if log is not None and report.failed:
        report.sections.append(
            ("inaccfs: the daemon's log", log.read() or "(it has logged nothing)")
        )
    return report


# --- fixtures -------------------------------------------------------------------------


@pytest.fixture
def inaccfs_mount(request: pytest.FixtureRequest) -> Iterator[inaccfs.Mount]:
    """A mount with its own daemon, as from `inaccfs.mounted`.

    At the end of the test the daemon ends; the test fails if that goes wrong.
    """
    options = _options(request.node)
    if (reason := _why_no_mounts()) is not None:
        pytest.skip(f"inaccfs cannot mount here: {reason}")
    with ExitStack() as stack:
        mount = _begin(stack, options)
        log = _Log(mount.log.open(encoding="utf-8", errors="replace"))
        request.node.stash[_LOG] = log
        try:
            yield mount
            complaint = _end(stack, mount)
        finally:
            text = log.finish()
        if complaint is None and "Traceback (most recent call last)" in text:
            complaint = f"the daemon of {mount.path} has met a bug: see its log"
        if complaint is not None:
            _fail(complaint)


@pytest.fixture
def inaccfs_shim(inaccfs_mount: inaccfs.Mount) -> Iterator[Client]:
    """A client that is connected to `inaccfs_mount`, as from `inaccfs.connect`."""
    import inaccfs

    with _unless_dead(inaccfs_mount), inaccfs.connect(inaccfs_mount.control) as shim:
        yield shim


@pytest.fixture
def inaccfs_vm(inaccfs_mount: inaccfs.Mount, inaccfs_shim: Client) -> Iterator[VM]:
    """A simulated VM without memory yet; `inaccfs_shim` has its private half."""
    from inaccfs.kvm import VM

    with _unless_dead(inaccfs_mount), VM(inaccfs_shim) as vm:
        yield vm


@pytest.fixture
def inaccfs_guest(
    inaccfs_mount: inaccfs.Mount, inaccfs_shim: Client
) -> Iterator[Guest]:
    """A guest with 2 MiB of private memory; it runs machine code and functions."""
    from inaccfs.kvm import Guest

    with _unless_dead(inaccfs_mount), Guest(inaccfs_shim) as guest:
        yield guest


# --- parts ----------------------------------------------------------------------------


def _fail(text: str) -> NoReturn:
    pytest.fail(f"inaccfs: {text}", pytrace=False)


def _options(item: pytest.Item) -> dict[str, Any]:
    """The options in the markers of a test, the closest of them last."""
    options: dict[str, Any] = {}
    for marker in reversed(list(item.iter_markers(_MARK))):
        if marker.args:
            _fail(f"marker {_MARK}: {marker.args[0]!r} has no name: write size='64m'")
        options.update(marker.kwargs)
    if not options:
        return options
    import inspect

    import inaccfs

    known = inspect.signature(inaccfs.mounted).parameters
    for name in options:
        if name not in known:
            _fail(f"marker {_MARK} has no option {name!r}, only {', '.join(known)}")
    return options


def _why_no_mounts() -> str | None:
    """Why nothing can be mounted on this machine, or None."""
    import os
    import shutil

    from inaccfs.machine import Machine
    from inaccfs.syscalls import CAP_SYS_ADMIN

    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return f"/dev/fuse: {exc.strerror}"
    if os.geteuid() != 0:
        return None if shutil.which("fusermount3") else "there is no fusermount3"
    capable = Machine().has(CAP_SYS_ADMIN)
    return None if capable else "root without CAP_SYS_ADMIN may not mount"


def _begin(stack: ExitStack, options: dict[str, Any]) -> inaccfs.Mount:
    """Mount until *stack* is closed, or fail the test with one line."""
    import inaccfs

    try:
        return stack.enter_context(inaccfs.mounted(**options))
    except inaccfs.InaccfsError as exc:
        message = f"cannot mount: {exc}"
    except (TypeError, ValueError) as exc:
        message = f"cannot mount with {options}: {exc}"
    # Do not fail in the handler: the report would show the handled exception, too.
    _fail(message)


def _end(stack: ExitStack, mount: inaccfs.Mount) -> str | None:
    """Unmount; return what was wrong with the daemon."""
    from inaccfs import InaccfsError

    try:
        stack.close()
    except InaccfsError as exc:
        status = mount.process.returncode
        if status is None or status >= 0:
            return str(exc)
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"the daemon of {mount.path} was killed by {name}"
    return None


@contextmanager
def _unless_dead(mount: inaccfs.Mount) -> Iterator[None]:
    """Leave it to the fixture of the mount to report that its daemon is dead."""
    import subprocess

    from inaccfs.client import ControlError

    try:
        yield
    except ControlError:
        try:
            mount.process.wait(_DYING_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        else:
            return
        raise
