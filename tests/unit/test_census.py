"""How files are counted: one walk for all callers, of any tree."""

from __future__ import annotations

import ast
import os
import resource
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

import inaccfs
from inaccfs.shim import census
from inaccfs.shim.census import Census, Totals, count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 4096


# --- callers -----------------------------------------------------------------------


class HeldWalk:
    """A walk that takes as long as a test wants, and finds how many there have been."""

    def __init__(self) -> None:
        self.begun = 0
        self.let_go = threading.Semaphore(0)

    def __call__(self) -> Totals:
        self.begun += 1
        found = Totals(self.begun, self.begun * PAGE)
        while not self.let_go.acquire(timeout=0.01):
            trio.from_thread.check_cancelled()
        return found


async def ask(asked: Census, into: list[int]) -> None:
    into.append((await asked.take()).files)


async def test_callers_during_a_walk_share_the_next_one() -> None:
    walk, found = HeldWalk(), list[int]()
    asked = Census(walk)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, asked, found)
            await until(lambda: walk.begun == 1)
            for _ in range(60):
                nursery.start_soon(ask, asked, found)
            await trio.testing.wait_all_tasks_blocked()
            walk.let_go.release(2)
    assert found == [1, *[2] * 60]
    assert walk.begun == 2


async def until(answer: Callable[[], bool]) -> None:
    while not answer():
        await trio.lowlevel.checkpoint()


async def test_a_later_call_gets_a_new_walk() -> None:
    walk = HeldWalk()
    walk.let_go.release(3)
    asked = Census(walk)
    assert [(await asked.take()).files for _ in range(3)] == [1, 2, 3]


async def test_while_too_many_wait_others_get_the_last_counts() -> None:
    """Each waiting caller may take a place that other requests of the kernel need."""
    walk, found = HeldWalk(), list[int]()
    asked = Census(walk)
    walk.let_go.release()
    await asked.take()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(census._MOST_WAITING):
                nursery.start_soon(ask, asked, found)
            await until(lambda: walk.begun == 2)
            await trio.testing.wait_all_tasks_blocked()
            assert (await asked.take()).files == 1
            walk.let_go.release(2)
    assert set(found) <= {2, 3}
    assert len(found) == census._MOST_WAITING


async def test_a_caller_may_be_cancelled_and_the_others_are_answered() -> None:
    walk, found = HeldWalk(), list[int]()
    asked = Census(walk)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            leaving = trio.CancelScope()

            async def leave() -> None:
                with leaving:
                    await asked.take()

            nursery.start_soon(leave)
            await until(lambda: walk.begun == 1)
            nursery.start_soon(ask, asked, found)
            await trio.testing.wait_all_tasks_blocked()
            leaving.cancel()
            await until(lambda: walk.begun == 2)
            walk.let_go.release()
    # The first walk was abandoned, and answers no caller.
    assert found == [2]


async def test_a_walk_that_fails_fails_for_one() -> None:
    outcomes: Iterator[OSError | Totals] = iter([OSError(24, "no fds"), Totals(7, 0)])

    def walk() -> Totals:
        found = next(outcomes)
        if isinstance(found, OSError):
            raise found
        return found

    asked = Census(walk)
    with pytest.raises(OSError, match="no fds"):
        await asked.take()
    assert await asked.take() == Totals(7, 0)


async def test_a_walk_takes_no_thread_of_others() -> None:
    walk = HeldWalk()
    asked = Census(walk)
    default = trio.to_thread.current_default_thread_limiter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asked.take)
        await until(lambda: walk.begun == 1)
        assert default.borrowed_tokens == 0
        walk.let_go.release()


_INTO_A_THREAD = ("to_thread.run_sync", "loop.in_thread")


def test_no_work_of_the_daemon_takes_threads_that_others_need() -> None:
    """Each call into a thread, in the daemon's rooms, has a limiter."""
    top = Path(inaccfs.__file__).parent
    calls = 0
    for room in ("shim", "fuse", "control", "."):
        for path in (top / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                words = ast.unparse(node)
                called = ast.unparse(node.func)
                if called.endswith(_INTO_A_THREAD) or (
                    called == "partial"
                    and any(name in words for name in _INTO_A_THREAD)
                ):
                    calls += 1
                    assert any(one.arg == "limiter" for one in node.keywords), (
                        f"{path.name}:{node.lineno}: {words}"
                    )
    assert calls >= 6


# --- what is there ------------------------------------------------------------------


@pytest.fixture
def root(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    fds = len(os.listdir("/proc/self/fd"))
    yield fd
    assert len(os.listdir("/proc/self/fd")) == fds
    os.close(fd)


def allocate(path: Path, pages: int) -> Path:
    path.touch()
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, pages * PAGE)
    return path


def test_each_file_counts_once(tree: Path, root: int) -> None:
    assert count(root) == Totals(0, 0)
    one = allocate(tree / "one", 3)
    (tree / "d" / "e").mkdir(parents=True)
    (tree / "d" / "e" / "link").hardlink_to(one)
    allocate(tree / "d" / "two", 2)
    (tree / "symlink").symlink_to("d")
    os.mkfifo(tree / "fifo")
    assert count(root) == Totals(2, 5 * PAGE)


def deepen(tree: Path, depth: int) -> None:
    """A file in each of *depth* directories, each in the one before."""
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_tree_may_be_deeper_than_there_are_fds(tree: Path, root: int) -> None:
    deepen(tree, 1500)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 4, limits[1]))
    try:
        assert count(root) == Totals(1500, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_without_fds_there_is_no_answer_rather_than_a_wrong_one(
    tree: Path, root: int
) -> None:
    deepen(tree, 3)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
    fillers: list[int] = []

    def use_up() -> None:
        while True:
            assert count(root) == Totals(3, 0)
            fillers.append(os.dup(root))

    try:
        with pytest.raises(OSError, match="Too many open files"):
            use_up()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fillers:
            os.close(fd)


@pytest.mark.parametrize("where", ["elsewhere", "out"])
def test_a_directory_that_moves_meanwhile_is_no_way_out(tree: Path, where: str) -> None:
    """Files outside the tree are not counted, and those still in it are."""
    inside = tree / "in"
    (inside / "a" / "b" / "c").mkdir(parents=True)
    allocate(inside / "a" / "b" / "c" / "file", 1)
    for name in ("1", "2", "3"):
        allocate(inside / name, 1)
        allocate(tree / name, 1)
    steps = 0

    def move() -> None:
        nonlocal steps
        steps += 1
        moving = inside / "a" / "b"
        if (moving / "c").exists() and at_file(moving / "c" / "file"):
            os.rename(moving, tree / "b" if where == "out" else inside / "b")

    def at_file(path: Path) -> bool:
        return path.exists() and steps >= 1 and walk._fd_is(path.parent)

    class Watched(census._Walk):
        def _fd_is(self, path: Path) -> bool:
            return os.path.samestat(os.fstat(self._fd), path.stat())

    root = os.open(inside, os.O_RDONLY)
    walk = Watched(root)
    found = 0
    for attributes in walk.below():
        found += attributes.st_size > 0 and attributes.st_nlink == 1
        move()
    walk.close()
    os.close(root)
    # "in/b" may be seen again where it is now, or not, as by readdir(3).
    assert found in {4, 5}
    assert not (inside / "a" / "b").exists()


def test_a_directory_without_permission_is_skipped(
    tree: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a plain user; the test may run as root, who may read anything."""
    for name in ("shut", "open"):
        (tree / name).mkdir()
        allocate(tree / name / "file", 1)
    real = os.open

    def guarded(path: str, flags: int, *, dir_fd: int) -> int:
        if path == "shut" and not flags & os.O_PATH:
            raise PermissionError(13, "no")
        return real(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", guarded)
    assert count(root) == Totals(1, PAGE)


def test_a_directory_without_search_permission_is_left_from_the_top(
    tree: Path, root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "a" / "b").mkdir(parents=True)
    for path in (tree / "one", tree / "a" / "two", tree / "a" / "b" / "three"):
        allocate(path, 1)
    real = os.open

    def guarded(path: str, flags: int, *, dir_fd: int) -> int:
        if path == "..":
            raise PermissionError(13, "no")
        return real(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", guarded)
    assert count(root) == Totals(3, 3 * PAGE)
