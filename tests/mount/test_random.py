"""Random sequences of operations against a model, and against a plain tmpfs."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.mount import raw, support
from tests.mount.support import PAGE, outcome, used

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse


def few(examples: int) -> settings:
    """Settings for a test in which each operation is a system call or two."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        # A failure is shrunk, but not explained: that takes minutes here.
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )


# --- memory -------------------------------------------------------------------

FILES = ["a", "b", "c"]
# Offsets and lengths around page borders, in bytes.
bytes_ = st.one_of(
    st.integers(0, 8).map(lambda page: page * PAGE),
    st.integers(0, 8 * PAGE),
    st.sampled_from([1, PAGE - 1, PAGE + 1]),
)


@dataclass
class ModelFile:
    """The state of one file in v8's shim over a shmem file."""

    size: int = 0
    pages: set[int] = field(default_factory=set)


class Model:
    """The rules of v8 in a few lines."""

    def __init__(self) -> None:
        self.files: dict[str, ModelFile] = {}

    def create(self, name: str) -> str:
        if name in self.files:
            return "EEXIST"
        self.files[name] = ModelFile()
        return "ok"

    def truncate(self, name: str, size: int) -> str:
        if (file := self.files.get(name)) is None:
            return "ENOENT"
        if file.size:
            return "EPERM"
        if size % PAGE:
            return "EINVAL"
        if size == 0:
            # shmem_setattr(): the size does not grow, so all pages past it are freed.
            file.pages.clear()
        file.size = size
        return "ok"

    def fallocate(self, name: str, mode: int, offset: int, length: int) -> str:
        if (file := self.files.get(name)) is None:
            return "ENOENT"
        if length == 0:
            return "EINVAL"
        if mode & raw.PUNCH_HOLE:
            if offset % PAGE or length % PAGE:
                return "EINVAL"
            file.pages -= set(range(offset // PAGE, (offset + length) // PAGE))
            return "ok"
        end = offset + length
        file.pages |= set(range(offset // PAGE, -(-end // PAGE)))
        if not mode & raw.KEEP_SIZE:
            file.size = max(file.size, end)
        return "ok"

    def rename(self, old: str, new: str) -> str:
        if old not in self.files:
            return "ENOENT"
        self.files[new] = self.files.pop(old)
        return "ok"

    def unlink(self, name: str) -> str:
        return "ok" if self.files.pop(name, None) is not None else "ENOENT"


def do(root: Path, operation: str, name: str, *arguments: Any) -> None:
    """The system call of a method of `Model`."""
    path = root / name
    match operation:
        case "create":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        case "truncate":
            os.truncate(path, *arguments)
        case "fallocate":
            with support.opened(path) as fd:
                raw.fallocate(fd, *arguments)
        case "rename":
            os.rename(path, root / arguments[0])
        case "unlink":
            os.unlink(path)


names = st.sampled_from(FILES)
modes = st.sampled_from([0, raw.KEEP_SIZE, raw.PUNCH_HOLE | raw.KEEP_SIZE])
memory_operations = st.lists(
    st.one_of(
        st.tuples(st.just("create"), names),
        st.tuples(st.just("truncate"), names, bytes_),
        st.tuples(st.just("fallocate"), names, modes, bytes_, bytes_),
        st.tuples(st.just("rename"), names, names),
        st.tuples(st.just("unlink"), names),
    ),
    max_size=25,
)


def test_sizes_and_allocated_pages_are_those_of_the_model(mount: Mount) -> None:
    @few(150)
    @given(memory_operations)
    def check(operations: list[tuple[Any, ...]]) -> None:
        model = Model()
        for left in os.listdir(mount.path):
            os.unlink(mount.path / left)
        # Half of the examples begin with something that can be changed.
        for name in FILES[: len(operations) % 3]:
            model.create(name)
            do(mount.path, "create", name)

        for operation, *arguments in operations:
            wanted = getattr(model, operation)(*arguments)
            result = outcome(do, mount.path, operation, *arguments)
            assert result == wanted, (operation, arguments)
            for name, file in model.files.items():
                found = os.stat(mount.path / name)
                assert found.st_size == file.size, (operation, arguments)
                assert found.st_blocks * 512 == len(file.pages) * PAGE
        assert sorted(os.listdir(mount.path)) == sorted(model.files)
        pages = sum(len(file.pages) for file in model.files.values())
        # Replaced and removed files are freed after their FORGET.
        support.ask_until(lambda: used(mount.path) == pages * PAGE)

    check()


# --- names --------------------------------------------------------------------

PLACES = ["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a", "f/d"]
places = st.sampled_from(PLACES)
flags = st.sampled_from(
    [0, 0, raw.RENAME_NOREPLACE, raw.RENAME_EXCHANGE, raw.RENAME_EXCHANGE | 1, 1 << 5]
)


def _create(root: Path, place: str) -> None:
    os.close(os.open(root / place, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


ACTIONS: dict[str, Callable[..., object]] = {
    "create": _create,
    "mkdir": lambda root, place: os.mkdir(root / place),
    "rmdir": lambda root, place: os.rmdir(root / place),
    "unlink": lambda root, place: os.unlink(root / place),
    "mkfifo": lambda root, place: os.mkfifo(root / place),
    "symlink": lambda root, place, to: os.symlink(to, root / place),
    "chmod": lambda root, place, mode: os.chmod(root / place, mode),
    "utime": lambda root, place, ns: os.utime(root / place, ns=(ns, ns)),
    "link": lambda root, place, to: os.link(
        root / place, root / to, follow_symlinks=False
    ),
    "rename": lambda root, place, to, how: raw.renameat2(root / place, root / to, how),
    "removetree": lambda root, place: shutil.rmtree(root / place),
}
name_operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["create", "mkdir", "mkdir"]), places),
        st.tuples(st.sampled_from(["rmdir", "unlink", "mkfifo", "removetree"]), places),
        st.tuples(st.sampled_from(["symlink", "link"]), places, places),
        st.tuples(st.just("chmod"), places, st.integers(0, 0o7777)),
        st.tuples(st.just("utime"), places, st.integers(0, 1 << 62)),
        st.tuples(st.just("rename"), places, places, flags),
        st.tuples(st.just("rename"), places, places, flags),
    ),
    max_size=30,
)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """The names and attributes of a tree, without inode numbers and times."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for at, directories, files in os.walk(root):
        for name in sorted([*directories, *files]):
            path = os.path.join(at, name)
            attributes = os.lstat(path)
            place = os.path.relpath(path, root)
            # Hard links of one file, identified by the first name.
            same = inodes.setdefault(attributes.st_ino, place)
            kind = stat.S_IFMT(attributes.st_mode)
            target = os.readlink(path) if stat.S_ISLNK(attributes.st_mode) else ""
            found[place] = (
                *(
                    kind,
                    stat.S_IMODE(attributes.st_mode),
                    attributes.st_nlink,
                    attributes.st_size,
                ),
                *(same, target),
            )
        directories.sort()
    return found


def test_names_are_those_of_a_plain_tmpfs(mount: Mount, memory: Path) -> None:
    """The same operations on both: the same errnos, and the same tree after each."""

    @few(100)
    @given(name_operations)
    def check(operations: list[tuple[Any, ...]]) -> None:
        for root in (mount.path, memory):
            for name in os.listdir(root):
                path = root / name
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else (
                    os.unlink(path)
                )
            os.mkdir(root / "d")
        for operation, *arguments in operations:
            action = ACTIONS[operation]
            wanted = outcome(action, memory, *arguments)
            assert outcome(action, mount.path, *arguments) == wanted, (
                operation,
                arguments,
            )
            assert tree(mount.path) == tree(memory), (operation, arguments)
        assert os.stat(mount.path).st_nlink == os.stat(memory).st_nlink

    check()
