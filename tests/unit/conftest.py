"""Fixtures of the tests that need no mount."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import HealthCheck, settings

import inaccfs
from inaccfs import syscalls
from inaccfs.backing.options import TmpfsOptions
from inaccfs.backing.private import private_tmpfs
from inaccfs.cli import signals
from inaccfs.errors import BackingError
from inaccfs.fuse.namespace import Namespace
from inaccfs.fuse.operations import Operations
from inaccfs.semantics import V8
from inaccfs.shim.superblock import Superblock
from tests.unit import explore_calls
from tests.unit.aio_calls import connected
from tests.unit.allocator_fakes import Stuck, StuckInUndoing, Worker, Working, working
from tests.unit.blocked_fakes import BlockedAllocator
from tests.unit.client_fakes import FakeDaemon, Peer, no_fds_leak
from tests.unit.client_talks import Talk
from tests.unit.control_fakes import Control, controlling
from tests.unit.fakes import World, serving
from tests.unit.kvm_code import Machine, machine
from tests.unit.pages_fakes import assert_no_strays

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from inaccfs.backing.root import Backing
    from inaccfs.client import Client, aio
    from tests.unit.explore_calls import Run, ScenarioFile

# The same examples in each run: only a change of the code can make a test fail.
settings.register_profile(
    "unit",
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("unit")


def small_tmpfs() -> Backing:
    """A tmpfs of 64 MiB that is freed with its fd."""
    try:
        return private_tmpfs(TmpfsOptions(size="64m"), fallback_name="inaccfs-test")
    except BackingError as exc:
        pytest.skip(str(exc))


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """No umask, as in the daemon: the kernel has applied the caller's mask already."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def backing() -> Iterator[Backing]:
    made = small_tmpfs()
    yield made
    made.close()


@pytest.fixture
def tree(backing: Backing) -> Path:
    """A path to the backing's root, for changes that bypass the mount."""
    return Path(f"/proc/self/fd/{backing.root}")


@pytest.fixture
def namespace(backing: Backing) -> Iterator[Namespace]:
    made = Namespace(backing, Superblock(V8(), backing.page_size))
    yield made
    made.close()


@pytest.fixture
def operations(namespace: Namespace) -> Operations:
    async def value() -> bytes:
        await trio.lowlevel.checkpoint()
        return b"value"

    return Operations(namespace, {"user.virtual": value})


@pytest.fixture
def blocked() -> BlockedAllocator:
    """The allocator of `world`: it blocks in each long allocation."""
    return BlockedAllocator()


@pytest.fixture
async def world(backing: Backing, blocked: BlockedAllocator) -> AsyncIterator[World]:
    async with serving(backing, allocator=blocked) as made:
        yield made


@pytest.fixture
async def control(scratch: Path, backing: Backing) -> AsyncIterator[Control]:
    with trio.fail_after(60):
        async with controlling(str(scratch / "control"), backing) as made:
            yield made


@pytest.fixture
def _no_strays() -> Iterator[None]:
    """After the test nothing is left of what `pages_fakes` has made."""
    yield
    assert_no_strays()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection; the first does not block."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


@pytest.fixture
def daemon(scratch: Path) -> Iterator[FakeDaemon]:
    """A daemon of a test's own, for clients."""
    with no_fds_leak():
        made = FakeDaemon(str(scratch / "socket"))
        yield made
        made.close()


@pytest.fixture
def shim(daemon: FakeDaemon) -> Iterator[Client]:
    with inaccfs.connect(daemon.path) as made:
        yield made


@pytest.fixture
def peer(daemon: FakeDaemon, shim: Client) -> Peer:
    """The daemon's end of the commands' connection."""
    return daemon.peer()


@pytest.fixture
def talk() -> Talk:
    return Talk()


@pytest.fixture
async def both(daemon: FakeDaemon) -> AsyncIterator[tuple[aio.Client, Peer]]:
    """A client of trio, and the daemon's end of its connection."""
    async with connected(daemon) as made:
        yield made


@pytest.fixture
def allocator() -> Iterator[Working]:
    """A real allocator, with workers of its own."""
    with working() as made:
        yield made


@pytest.fixture
def memory() -> Iterator[int]:
    """A memfd for `allocator`."""
    fd = os.memfd_create("backing")
    yield fd
    os.close(fd)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """The workers of every allocator that is made from now on get stuck."""
    made = Worker(tmp_path)
    monkeypatch.setattr(syscalls, "fallocate", Stuck(made.path))
    yield made
    made.close()


@pytest.fixture
def undoing_worker(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """The same, but they take long to die."""
    stuck = StuckInUndoing(worker.path, worker.undoing_path)
    monkeypatch.setattr(syscalls, "fallocate", stuck)
    return worker


@pytest.fixture
def guest() -> Iterator[Machine]:
    """A machine for code, whose file's pages are private."""
    with machine() as made:
        yield made


@pytest.fixture
def run_explore(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """`inaccfs explore` in this process."""
    # A signal of the test before is not one of this command.
    monkeypatch.setattr(signals, "_came", float("-inf"))
    return partial(explore_calls.run, capsys)


@pytest.fixture
def scenario_file(tmp_path: Path) -> ScenarioFile:
    """A file with a scenario, whose actors are given."""
    return partial(explore_calls.write_scenario, tmp_path / "mine.py")
