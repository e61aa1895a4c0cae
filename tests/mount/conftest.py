"""Fixtures of the tests that mount for real."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.kvm import VM
from tests.mount import support
from tests.mount.guests import add_slot, memfd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.client import Client


@pytest.fixture(autouse=True)
def _fuse() -> None:
    if reason := support.why_no_fuse():
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _bytecode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the daemons be compiled once, where the environment says to keep nothing.

    It is a third of the time that each takes to start.
    """
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):
            place = str(tmp_path_factory.mktemp("bytecode"))
            for environment in (os.environ, support.ENVIRONMENT):
                patch.delitem(environment, "PYTHONDONTWRITEBYTECODE")
                patch.setitem(environment, "PYTHONPYCACHEPREFIX", place)
        yield


class Ahead:
    """Mounts for the next tests, made while others run.

    To start a daemon takes ten times as long as most tests, and one CPU of two.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2)
        self._next: deque[Future[tuple[ExitStack, inaccfs.Mount]]] = deque()

    def take(self) -> tuple[ExitStack, inaccfs.Mount]:
        """A mount that no test has used yet, and the stack that takes it down."""
        while len(self._next) < 3:
            self._next.append(self._pool.submit(self._make))
        return self._next.popleft().result()

    @staticmethod
    def _make() -> tuple[ExitStack, inaccfs.Mount]:
        stack = ExitStack()
        return stack, stack.enter_context(support.mounted())

    def close(self) -> None:
        """Take down the mount that no test needed."""
        for made in self._next:
            made.result()[0].close()
        self._pool.shutdown()


@pytest.fixture(scope="session")
def _ahead(_bytecode: None) -> Iterator[Ahead]:
    ahead = Ahead()
    yield ahead
    ahead.close()


@pytest.fixture
def mount(request: pytest.FixtureRequest, _ahead: Ahead) -> Iterator[inaccfs.Mount]:
    """A mount with a daemon of its own, asserted to end well."""
    if (marker := request.node.get_closest_marker("semantics")) is not None:
        stack = ExitStack()
        made = stack.enter_context(support.mounted(semantics=marker.args[0]))
    else:
        stack, made = _ahead.take()
    with stack:
        yield made


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
def scratch() -> Iterator[Path]:
    """A directory with a short name: the paths of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="inaccfs-") as path:
        yield Path(path)


@pytest.fixture
def memory(scratch: Path) -> Iterator[Path]:
    """A tmpfs of the test's own, to wrap or to compare with."""
    with support.tmpfs(scratch / "memory") as path:
        yield path


@pytest.fixture
def point(scratch: Path) -> Path:
    """A directory to mount on; after the test it is one again."""
    path = scratch / "mnt"
    path.mkdir()
    return path
