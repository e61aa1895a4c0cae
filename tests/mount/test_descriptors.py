"""The daemon's fds: what happens when they are used up."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.mount import raw, support
from tests.mount.peers import peer
from tests.mount.support import PAGE, new_file, opened, outcome, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse


def limit(mount: Mount, soft: int) -> None:
    """Set how many fds the daemon may have."""
    _, hard = resource.prlimit(mount.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def used_up(mount: Mount, left: int = 0) -> Iterator[None]:
    """The daemon has *left* free fds during a with block."""
    soft, _ = resource.prlimit(mount.pid, resource.RLIMIT_NOFILE)
    numbers = {int(name) for name in os.listdir(f"/proc/{mount.pid}/fd")}
    free = [
        number for number in range(max(numbers) + left + 2) if number not in numbers
    ]
    limit(mount, free[left])
    try:
        yield
    finally:
        limit(mount, soft)


MAKES: dict[str, Callable[[Path], object]] = {
    "mkdir": lambda path: path.mkdir(),
    "symlink": lambda path: path.symlink_to("nowhere"),
    "mkfifo": os.mkfifo,
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "create": new_file,
    "link": lambda path: os.link(path.parent / "file", path),
    "rename": lambda path: os.rename(path.parent / "file", path),
    "exchange": lambda path: raw.renameat2(
        path.parent / "file", path.parent / "other", raw.RENAME_EXCHANGE
    ),
}


@pytest.mark.parametrize("left", range(4))
@pytest.mark.parametrize("name", MAKES)
def test_a_name_is_made_or_is_not_there(mount: Mount, name: str, left: int) -> None:
    """It can be made when there are fds again: the kernel caches no failure."""
    place = mount.path / "a" / "b"
    place.mkdir(parents=True)
    for known in ("file", "other"):
        new_file(place / known)
    new = place / "new"
    before = sorted(os.listdir(place))
    make = MAKES[name]
    assert not new.exists()

    with used_up(mount, left):
        result = outcome(make, new)

    assert result in ("ok", "EMFILE")
    there = sorted(os.listdir(place))
    if result == "ok":
        assert name == "exchange" or "new" in there
    else:
        assert there == before
        assert not os.path.lexists(new)
        make(new)
    assert os.path.lexists(new) or name == "exchange"
    # The file can be used: stat(2) and unlink(2) work.
    for path in list(place.iterdir()):
        path.lstat()
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert os.listdir(place) == []
    place.rmdir()
    place.parent.rmdir()


@support.needs_root
def test_files_leave_fds_for_the_daemon(memory: Path) -> None:
    """Directories, names and peers are served when no more files can be opened.

    This is on a wrapped directory; on others fds can be closed, see below.
    """
    with ExitStack() as stack:
        mount = stack.enter_context(support.mounted(backing=memory))
        (mount.path / "deep" / "er").mkdir(parents=True)
        new_file(mount.path / "deep" / "er" / "file")
        limit(mount, 256)
        results = [_hold(stack, mount.path / f"f{number}") for number in range(256)]
        held = results.count("ok")
        assert results == ["ok"] * held + ["EMFILE"] * (256 - held)
        assert 100 < held <= 256 - 64
        assert not (mount.path / f"f{held}").exists()

        assert (
            outcome(os.open, mount.path / "deep" / "er" / "file", os.O_RDWR) == "EMFILE"
        )
        assert outcome(os.listdir, mount.path / "deep") == "EMFILE"
        assert outcome(os.open, mount.path, os.O_TMPFILE | os.O_RDWR) == "EMFILE"
        # An open file still works, and another open of it needs no further fd.
        with opened(mount.path / "f0") as fd:
            raw.fallocate(fd, 0, 0, PAGE)
        # The daemon's own.
        new = mount.path / "deep" / "er" / "new"
        new.mkdir()
        (new / "link").symlink_to("nowhere")
        os.truncate(mount.path / "deep" / "er" / "file", PAGE)
        os.rename(mount.path / "deep" / "er" / "file", new / "file")
        os.unlink(new / "file")
        os.unlink(mount.path / "f1")
        assert os.stat(new).st_nlink == 2
        for _ in range(8):
            stack.enter_context(peer(mount.control))


def test_deleted_files_take_at_most_half_of_the_reserve(
    mount: Mount,
) -> None:
    """A removed name costs an fd until the kernel forgets the inode."""
    for number in range(300):
        new_file(mount.path / f"f{number}")
    paths = [
        os.open(mount.path / f"f{number}", os.O_PATH | os.O_CLOEXEC)
        for number in range(300)
    ]
    limit(mount, 256)
    result = [outcome(os.unlink, mount.path / f"f{number}") for number in range(300)]
    with peer(mount.control):
        assert set(result) == {"ok", "EMFILE"}
        there = result.count("EMFILE")
    for fd in paths:
        os.close(fd)
    # The kernel sends FORGET some time later.
    support.ask_until(lambda: outcome(os.listdir, mount.path) == "ok")
    assert len(os.listdir(mount.path)) == there
    for number in range(300):
        (mount.path / f"f{number}").unlink(missing_ok=True)
    assert os.listdir(mount.path) == []


def _hold(stack: ExitStack, path: Path) -> str:
    """Make a file and keep it open until the end of the *stack*."""
    return outcome(stack.enter_context, opened(path, os.O_CREAT | os.O_RDWR))


HOLD = """
import os, sys
place, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
fds = [os.open(f"{place}/{name}{at}", os.O_CREAT | os.O_RDWR) for at in range(count)]
for fd in fds:
    os.ftruncate(fd, 4096)
print(len(fds), flush=True)
sys.stdin.read()
"""


@support.needs_root
def test_two_processes_with_11000_files_each_work_as_on_a_tmpfs(mount: Mount) -> None:
    """This is so for any limit that the daemon was started with."""
    with ExitStack() as stack:
        # Each ends when the pipe to it is closed.
        holders = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLD, str(mount.path), name, "11000"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for name in "ab"
        ]
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"11000\n"
        assert len(os.listdir(mount.path)) == 22_000
        for holder in holders:
            assert holder.stdin is not None
            holder.stdin.close()


@support.needs_root
def test_open_files_with_names_are_let_go_and_come_back(mount: Mount) -> None:
    """This happens when fds run out; processes with these files open do not notice."""
    # The helper's worker, and fds for peers, may be opened only now.
    most = support.open_fds(mount.pid) + 10
    limit(mount, 256)
    with ExitStack() as stack, peer(mount.control) as shim:
        peers = stack.enter_context(_made(mount, "peers"))
        shim.do("getfd", peers, fdname="it")
        fds = [stack.enter_context(_made(mount, f"f{n}")) for n in range(1000)]
        gone, moved, linked = fds[:3]
        (mount.path / "f0").unlink()
        (mount.path / "f1").rename(mount.path / "moved")
        os.link(mount.path / "f2", mount.path / "linked")
        (mount.path / "f2").unlink()
        for number, fd in enumerate(fds):
            raw.fallocate(fd, 0, 0, (1 + number % 3) * PAGE)
        for number, fd in enumerate(fds):
            found = os.fstat(fd)
            assert found.st_blocks * 512 == (1 + number % 3) * PAGE
            assert found.st_nlink == (number > 0)
            os.fchmod(fd, 0o640)
        assert os.stat(mount.path / "moved").st_ino == os.fstat(moved).st_ino
        assert os.stat(mount.path / "linked").st_ino == os.fstat(linked).st_ino
        with opened(mount.path / "f500") as again:
            raw.punch(again, 0, PAGE)
        # A peer's fd stays open, and others can be opened.
        raw.fallocate(peers, 0, 0, PAGE)
        assert "pfn" in shim.do("get-pfn", file="it", offset=0)
        shim.do("getfd", gone, fdname="gone")
        shim.do("getfd", fds[7], fdname="f7")
        assert shim.do("query-file", file="f7")["opens"] == 2
        listed = shim.do("query-files")
        listed += shim.do("query-files", start=listed[-1]["ino"] + 1)
        opens = {file["name"]: file["opens"] for file in listed}
        assert len(opens) == 1001
        assert opens["/f500"] == opens["/moved"] == 1
        # Files without names keep their fds, and then no more are free.
        for number in range(3, 1000):
            outcome((mount.path / f"f{number}").unlink)
        assert outcome(os.open, mount.path / "new", os.O_CREAT) in ("ok", "EMFILE")
    # RELEASE and FORGET come after close(2) has returned.
    support.ask_until(lambda: support.open_fds(mount.pid) <= most)
    for path in list(mount.path.iterdir()):
        path.unlink()


def _made(mount: Mount, name: str) -> AbstractContextManager[int]:
    return opened(mount.path / name, os.O_CREAT | os.O_RDWR)


@support.needs_root
def test_a_plain_users_daemon_has_its_hard_limit() -> None:
    """Only CAP_SYS_RESOURCE gives more."""
    code = (
        "import resource; from inaccfs.fuse import descriptors;"
        "descriptors.raise_limit(); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    ran = run(
        "prlimit",
        "--nofile=512:1024",
        "setpriv",
        "--bounding-set=-sys_resource",
        sys.executable,
        "-c",
        code,
    )
    assert ran.stdout == "(1024, 1024)\n"
