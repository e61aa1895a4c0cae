"""`inaccfs umount` in every state of the daemon, and with other mounts in its way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import pytest

import inaccfs
from inaccfs import ending, mountcalls, mountinfo
from inaccfs.fuse import finding, mounting, unmounting
from tests.mount import support
from tests.mount.support import (
    PATIENCE,
    SOON,
    background,
    cli,
    complaint,
    inaccfs_command,
    new_file,
    opened,
    outcome,
    run,
)
from tests.mount.unmounting import bound, stopped, umount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs import Mount

pytestmark = [pytest.mark.fuse, support.needs_root]


@pytest.fixture
def mount(new_mount: Mount) -> Mount:
    """Each test ends its own."""
    return new_mount


GONE = ("ENOTCONN", "ECONNABORTED")


# --- a daemon that does not answer --------------------------------------------

ASKER: Final = """
import os, sys
print("asking", flush=True)
try:
    os.statvfs(sys.argv[1])
except OSError:
    pass
"""


@contextmanager
def hanging_request(mount: Mount) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for the daemon, and ends when there is an answer."""
    with subprocess.Popen(
        [
            *(sys.executable, "-c"),
            ASKER,
            mount.path,
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "asking\n"
        yield child


@pytest.mark.usefixtures("_hasty")
def test_a_stopped_daemon_loses_its_connection_and_umount_says_so(
    mount: Mount,
) -> None:
    with (
        opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd,
        stopped(mount),
        hanging_request(mount) as child,
    ):
        message = umount(mount.path)

        assert f"{mount.path} is unmounted; its daemon did not answer" in message
        assert "so its connection is aborted" in message
        assert not support.is_mounted(mount.path)
        assert outcome(os.fstat, fd) in GONE
        assert child.wait(PATIENCE) == 0
    assert mount.process.wait(PATIENCE) == 0


@pytest.mark.usefixtures("_hasty")
def test_a_stopped_daemon_that_stays_is_reported_with_its_pid(
    point: Path, scratch: Path
) -> None:
    log = scratch / "log"
    cli("mount", "--log", log, point)
    pid = support.status_of(point).pid
    daemon = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGSTOP)
        message = umount(point)
        assert f"{pid} is still there with its memory: kill -CONT {pid} " in message
        assert f"kill -KILL {pid} ends it" in message
        os.kill(pid, signal.SIGCONT)
        assert support.wait_readable(daemon)
        assert not log.exists()
    finally:
        support.give_up(point, daemon)


@pytest.mark.usefixtures("_hasty")
def test_with_fusectl_the_connection_is_aborted_by_it(
    point: Path, scratch: Path
) -> None:
    """The mount's owner may write to the file `abort`."""
    connections = scratch / "connections"
    connections.mkdir()
    with support.mounted(point) as mount:
        run("mount", "-t", "fusectl", "none", connections)
        try:
            found = finding.find(str(point))
            with opened(point / "file", os.O_CREAT | os.O_RDWR) as fd:
                assert unmounting.abort(found)
                assert outcome(os.fstat, fd) in GONE
            assert mount.process.wait(PATIENCE) == 0
        finally:
            run("umount", connections)


@pytest.mark.usefixtures("_hasty")
def test_lazily_a_stopped_daemon_keeps_open_files(mount: Mount) -> None:
    with opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd:
        with stopped(mount):
            message = umount("--lazy", mount.path)
            assert "its daemon does not answer, so processes with open files" in message
            assert "/sys/fs/fuse/connections/" in message
            assert not support.is_mounted(mount.path)
        assert outcome(os.fstat, fd) == "ok"
        assert mount.process.poll() is None
    assert mount.process.wait(PATIENCE) == 0


def test_a_dead_daemon_is_reported(point: Path) -> None:
    for words in ((point,), ("--lazy", point)):
        with support.doomed(point) as mount:
            support.kill(mount)
            assert umount(*words) == (
                f"inaccfs: {point} is unmounted; its daemon was dead\n"
            )


def test_a_mount_that_fails_leaves_the_dead_mounts_of_others(point: Path) -> None:
    with support.doomed(point) as mount:
        support.kill(mount)
        mounting._remove_strays([], {"0:0"})
        assert finding.find(str(point)).path == str(point)


@pytest.mark.parametrize("uid", [0, 1000], ids=["mount(2)", "fusermount3"])
def test_a_mount_that_another_process_unmounts_just_then_is_unmounted(
    point: Path, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    with support.doomed(point) as mount:
        found = finding.find(str(point))
        support.kill(mount)
        # Other tests, in which a mount fails as a user, may unmount it first.
        with suppress(OSError):
            mountcalls.umount(str(point), mountcalls.MNT_DETACH)
        monkeypatch.setattr(os, "geteuid", lambda: uid)
        unmounting.unmount(found, lazy=False)
        monkeypatch.undo()


def test_umount_returns_though_its_question_hangs(
    point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the child ignores its time limit."""
    monkeypatch.setattr(ending, "_QUESTION", "import time; time.sleep(1000)")
    monkeypatch.setattr(finding, "DAEMON_SECONDS", 0.1)
    with support.mounted(point) as mount:
        before = time.monotonic()
        assert "did not answer" in umount(point)
        assert time.monotonic() - before < SOON
        assert mount.process.wait(PATIENCE) == 0


def test_a_connection_without_a_reader_is_aborted(
    point: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGKILL this happens if a thread hangs and keeps /dev/fuse open."""
    monkeypatch.setattr(finding, "DAEMON_SECONDS", 0.5)
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
    mountcalls.mount("inaccfs", str(point), finding.FSTYPE, 0, options)
    try:
        assert "so its connection is aborted" in umount(point)
        assert not support.is_mounted(point)
    finally:
        os.close(fuse)
        with suppress(OSError):
            mountcalls.umount(str(point), mountcalls.MNT_DETACH)


def test_mounted_ends_a_daemon_that_is_stopped() -> None:
    with support.mounted() as mount:
        mount.process.send_signal(signal.SIGSTOP)
    assert mount.process.returncode == 0


def test_mounted_kills_a_daemon_that_does_not_listen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys\n"
        "if 'fsname=deaf' in sys.orig_argv:\n"
        "    from inaccfs import daemon\n"
        "    daemon._Daemon._end = lambda *_: None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = time.monotonic()
    with (
        pytest.raises(inaccfs.InaccfsError, match="ended with status -9"),
        inaccfs.mounted(options="fsname=deaf") as mount,
    ):
        before = time.monotonic()
    assert time.monotonic() - before < SOON
    assert not support.is_mounted(mount.path)
    assert not mount.path.exists()


@pytest.mark.usefixtures("_hasty")
def test_a_copy_of_a_stopped_mount_takes_nothing_from_the_other(
    mount: Mount, scratch: Path
) -> None:
    with (
        opened(mount.path / "file", os.O_CREAT | os.O_RDWR) as fd,
        bound(mount.path, scratch / "b") as copy,
    ):
        with stopped(mount):
            assert umount(copy) == (
                f"inaccfs: {copy} is unmounted; its daemon does not answer, but stays, "
                f"because the mount has copies: {mount.path}\n"
            )
            assert not support.is_mounted(copy)
        assert outcome(os.fstat, fd) == "ok"


# --- what is in the way -------------------------------------------------------


@contextmanager
def mounted_below(mount: Mount, scratch: Path) -> Iterator[Path]:
    """Another mount in *mount*, in the background."""
    inner = mount.path / "inner"
    inner.mkdir()
    with background(inner, scratch):
        yield inner


@pytest.mark.parametrize("lazily", [False, True])
def test_a_mount_in_a_stopped_one_is_left_alone(
    mount: Mount, scratch: Path, lazily: bool
) -> None:
    """The kernel would wait for the outer daemon, however healthy the inner one is."""
    words = ["--lazy"] if lazily else []
    with mounted_below(mount, scratch) as inner:
        with stopped(mount):
            assert complaint("umount", *words, inner) == (
                f"inaccfs: {inner} is in another mount: {mount.path}: its daemon does "
                f"not answer: inaccfs umount --lazy {mount.path} unmounts both"
            )
        # It has lost nothing.
        new_file(inner / "file")
        cli("umount", inner)


def test_a_mount_in_a_dead_one_goes_with_it(scratch: Path) -> None:
    with support.doomed() as mount, mounted_below(mount, scratch) as inner:
        support.kill(mount)
        message = complaint("umount", inner)
        assert f"{mount.path}: its daemon is dead: inaccfs umount --lazy" in message
        assert "its daemon was dead" in umount("--lazy", mount.path)


def test_a_path_in_a_stopped_mount_is_not_waited_for(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "_ANSWER_SECONDS", 1.0)
    with stopped(mount):
        for command in ("umount", "status"):
            assert complaint(command, mount.path / "sub" / "x").endswith(
                f"{mount.path}/sub: the daemon of a mount on the way does not answer"
            )


def test_several_at_once_are_not_in_each_others_way(point: Path, scratch: Path) -> None:
    """Each asks the daemon, and uses the mount meanwhile."""
    with background(point, scratch):
        with ExitStack() as stack:
            several = [
                stack.enter_context(
                    subprocess.Popen(
                        inaccfs_command("umount", point),
                        stderr=subprocess.PIPE,
                        text=True,
                        env=support.ENVIRONMENT,
                    )
                )
                for _ in range(4)
            ]
            ended = [(one.communicate(), one.returncode) for one in several]
        assert 0 in [status for _, status in ended]
        for (_, said), _ in ended:
            assert "busy" not in said
            assert said.count("\n") <= 1


def test_a_mount_inside_the_mount_is_named(mount: Mount) -> None:
    nested = mount.path / "sub"
    nested.mkdir()
    run("mount", "-t", "tmpfs", "none", nested)
    assert f"is busy: umount {nested}, which is mounted in it" in complaint(
        "umount", mount.path
    )

    # mounted() unmounts both.


def test_a_mount_that_is_covered_is_reported(mount: Mount) -> None:
    run("mount", "-t", "tmpfs", "none", mount.path)
    message = complaint("umount", mount.path)
    assert f"an inaccfs mount that a tmpfs covers: umount {mount.path} first" in message
    run("umount", mount.path)
    cli("umount", mount.path)


def test_mounted_does_not_empty_a_mount_that_covers_its_own(scratch: Path) -> None:
    block = inaccfs.mounted()
    mount = block.__enter__()
    run("mount", "-t", "tmpfs", "none", mount.path)
    new_file(mount.path / "precious")
    message = f"{mount.path} is covered by another mount and stays: umount {mount.path}"
    with pytest.raises(inaccfs.InaccfsError, match=message):
        block.__exit__(None, None, None)
    assert mount.process.returncode == 0
    assert os.listdir(mount.path) == ["precious"]
    run("umount", mount.path)
    assert "its daemon was dead" in umount(mount.path)
    run("rm", "-r", mount.path.parent)


def test_a_daemon_finds_its_mount_after_it_was_moved(scratch: Path) -> None:
    (scratch / "old" / "mnt").mkdir(parents=True)
    with inaccfs.mounted(scratch / "old" / "mnt") as mount:
        os.rename(scratch / "old", scratch / "new")
        mount.process.terminate()
        assert mount.process.wait(PATIENCE) == 0
    assert not mountinfo.below(str(scratch))
