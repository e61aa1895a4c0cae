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

from tests.mount import support

if TYPE_CHECKING:
    from collections.abc import Iterator

    import inaccfs


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


class Ahead:
    """Mounts for the next tests, made while others run.

    The start of a daemon takes ten times as long as most tests, and one of two CPUs.
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
def mount(_ahead: Ahead) -> Iterator[inaccfs.Mount]:
    """A mount with its own daemon, which must end well."""
    stack, made = _ahead.take()
    with stack:
        yield made


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a short name: the paths of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="inaccfs-") as path:
        yield Path(path)


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
