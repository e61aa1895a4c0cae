"""Fixtures of the tests that mount for real."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import pytest

import inaccfs
from inaccfs.fuse import finding
from inaccfs.kvm import VM
from tests.mount import support
from tests.mount.guests import add_slot, memfd
from tests.mount.namespaces import private_namespace
from tests.mount.nobody import Nobody, setup_script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.client import Client
    from inaccfs.status import Status


@pytest.fixture(autouse=True)
def _fuse() -> None:
    if reason := support.why_no_fuse():
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _bytecode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let Python compile the daemon once, even if the environment forbids bytecode.

    Compiling is a third of a daemon's start.
    """
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            place = str(tmp_path_factory.mktemp("bytecode"))
            for environment in (os.environ, support.ENVIRONMENT):
                patch.delitem(environment, "PYTHONDONTWRITEBYTECODE")
                patch.setitem(environment, "PYTHONPYCACHEPREFIX", place)
        yield


class Seen(NamedTuple):
    """What tells a mount that serves a test from one that has not been used yet."""

    status: Status
    root: tuple[int, ...]
    xattrs: list[str]
    fds: int
    limit: tuple[int, int]
    log: str

    @classmethod
    def of(cls, mount: inaccfs.Mount) -> Self:
        """How it is now.

        Raises:
            OSError, InaccfsError: it has gone, or does not answer.
        """
        root = os.stat(mount.path)
        return cls(
            mount.status(),
            (root.st_dev, root.st_nlink, root.st_mode, root.st_uid, root.st_gid),
            os.listxattr(mount.path),
            support.open_fds(mount.pid),
            resource.prlimit(mount.pid, resource.RLIMIT_NOFILE),
            mount.log.read_text(errors="replace"),
        )


class Made:
    """A mount that serves one test after another, as long as each leaves it bare."""

    # One that ends badly should have served few.
    _USES: Final = 16
    # More is not worth removing.
    _NAMES: Final = 32
    # So often it is asked whether the kernel has sent what it sends after close(2).
    _QUESTIONS: Final = 1000

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.mount: Final = self._stack.enter_context(support.mounted())
        self._new: Seen | None = None
        self._uses = 0

    def begin(self) -> inaccfs.Mount:
        """Let a test have it.

        Only now has the daemon surely closed the pipe on which it said it was ready.
        """
        self._uses += 1
        if self._new is None:
            self._new = Seen.of(self.mount)
        return self.mount

    def close(self) -> None:
        """Take it down; asserts that it ends well."""
        self._stack.close()

    def is_as_new(self) -> bool:
        """Remove what a test has left; return whether another test may have it.

        Not one whose daemon has logged anything, or has an fd more.
        """
        try:
            return self._uses < self._USES and self._clear() and self._settles()
        except (OSError, inaccfs.InaccfsError):
            return False

    def _clear(self) -> bool:
        # A daemon that is stopped would keep whoever lists it waiting.
        self.mount.status()
        with os.scandir(os.fsencode(self.mount.path)) as names:
            left = list(islice(names, self._NAMES + 1))
        if len(left) > self._NAMES:
            return False
        for each in left:
            is_directory = each.is_dir(follow_symlinks=False)
            (os.rmdir if is_directory else os.unlink)(each.path)
        return True

    def _settles(self) -> bool:
        new = self._new
        assert new is not None
        for _ in range(self._QUESTIONS):
            now = Seen.of(self.mount)
            if now == new:
                return True
            # Nothing else changes by itself.
            if now._replace(status=new.status, fds=new.fds) != new:
                break
        return False


class Ahead:
    """Mounts for the next tests, made while others run.

    The start of a daemon takes ten times as long as most tests, and one of two CPUs.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2)
        self._next: deque[Future[Made]] = deque()
        self._used: list[Made] = []

    def take_new(self) -> Made:
        """A mount that no test has used yet."""
        self._start(2)
        return self._next.popleft().result()

    def take(self) -> Made:
        """A mount as new as that, though others may have used it."""
        return self._used.pop() if self._used else self.take_new()

    def give_back(self, made: Made) -> None:
        """Keep it for the next test, or take it down."""
        if made.is_as_new():
            self._used.append(made)
        else:
            made.close()

    def _start(self, number: int) -> None:
        while len(self._next) < number:
            self._next.append(self._pool.submit(Made))

    def close(self) -> None:
        """Take down the mounts that no test needed."""
        with ExitStack() as stack:
            stack.callback(self._pool.shutdown)
            # Each is closed, even if the end of another one is bad.
            for made in self._used:
                stack.callback(made.close)
            for each in self._next:
                stack.callback(self._close_unused, each)

    @staticmethod
    def _close_unused(made: Future[Made]) -> None:
        made.result().close()


@pytest.fixture(scope="session")
def _ahead(_bytecode: None) -> Iterator[Ahead]:
    ahead = Ahead()
    yield ahead
    ahead.close()


@pytest.fixture
def mount(request: pytest.FixtureRequest, _ahead: Ahead) -> Iterator[inaccfs.Mount]:
    """A mount that no other test uses now, and that must end well.

    An earlier test may have used it, and left it as it was. So its counters may not
    begin at 0.
    """
    if (marker := request.node.get_closest_marker("semantics")) is not None:
        with support.mounted(semantics=marker.args[0]) as own:
            yield own
        return
    made = _ahead.take()
    try:
        yield made.begin()
    finally:
        _ahead.give_back(made)


@pytest.fixture
def new_mount(_ahead: Ahead) -> Iterator[inaccfs.Mount]:
    """A mount with a new daemon, which must end well after the test."""
    made = _ahead.take_new()
    try:
        yield made.mount
    finally:
        made.close()


@pytest.fixture
def shim(mount: inaccfs.Mount) -> Iterator[Client]:
    """A client of the mount."""
    with inaccfs.connect(mount.path) as made:
        yield made


@pytest.fixture
def fd(shim: Client) -> Iterator[int]:
    """A file of the mount without a name, as large as a slot of `add_slot`."""
    made = memfd(shim)
    yield made
    os.close(made)


@pytest.fixture
def vm(shim: Client, fd: int) -> Iterator[VM]:
    """A VM with one slot, which has the file."""
    with VM(shim) as made:
        add_slot(made, fd)
        yield made


@pytest.fixture
def memory(scratch: Path) -> Iterator[Path]:
    """A tmpfs for the test, to wrap or to compare with."""
    with support.tmpfs(scratch / "memory") as path:
        yield path


@pytest.fixture
def point(scratch: Path) -> Path:
    """A directory to mount on; after the test nothing is mounted there."""
    path = scratch / "mnt"
    path.mkdir()
    return path


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that becomes the user's home, in the namespace only."""
    if shutil.which("fusermount3") is None:
        pytest.skip("no fusermount3")
    with tempfile.TemporaryDirectory(prefix="inaccfs-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def nobody(home: Path) -> Iterator[Nobody]:
    """A user who may make user namespaces, if the machine allows them."""
    with private_namespace(setup_script(home)) as namespace:
        yield Nobody(namespace, home)


@pytest.fixture
def confined(home: Path) -> Iterator[Nobody]:
    """A user who may not, because of a chroot: see EPERM in unshare(2)."""
    root = home / "root"
    script = f"{setup_script(home)}\nmkdir root; mount --rbind / root"
    with private_namespace(script) as namespace:
        yield Nobody(namespace, home, str(root))


@pytest.fixture
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time after which a stopped daemon counts as not answering."""
    monkeypatch.setattr(finding, "DAEMON_SECONDS", 1.0)


@pytest.fixture
def _nothing_is_mounted(point: Path, scratch: Path) -> Iterator[None]:
    """After the test nothing is left of a mount that could not be made."""
    yield
    if support.is_mounted(point):
        support.cli("umount", point)
        pytest.fail("there is a mount")
    assert os.listdir(point) == []
    assert not (scratch / "control").exists()
