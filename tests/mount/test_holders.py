"""A mount that is made by `mounted` ends with the process that made it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from inaccfs import mountinfo
from tests.mount import support
from tests.mount.support import ENVIRONMENT, PATIENCE, TOP, background, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.fuse

# Prints the daemon's pid and the mountpoint, and then runs the test's code.
HOLDER: Final = """
import os, signal, subprocess, sys, threading, time
import inaccfs

def main(options):
    with inaccfs.mounted(**options) as mount:
        print(mount.pid, mount.path, flush=True)
        {body}

def wait():
    sys.stdin.read()

main({options})
"""


@dataclass
class Held:
    """A process, and the mount that it has made with `mounted`."""

    holder: subprocess.Popen[str]
    # A pidfd.
    daemon: int
    path: Path

    def assert_there(self) -> None:
        """The mount is there and answers."""
        assert support.is_mounted(self.path)
        os.listdir(self.path)
        assert not support.wait_readable(self.daemon, 0)

    def assert_gone(self, *, scratch: bool = True) -> None:
        """Daemon, mount and directory end within a moment."""
        before = time.monotonic()
        assert support.wait_readable(self.daemon)
        # It takes 2 seconds on an idle machine.
        assert time.monotonic() - before < support.SOON
        assert mountinfo.below(str(self.path)) == []
        if scratch:
            assert not self.path.parent.exists()


@contextmanager
def held(body: str = "wait()", options: str = "{}", prefix: str = "") -> Iterator[Held]:
    """A process that holds a mount, for as long as the block lasts."""
    source = prefix + HOLDER.format(body=body, options=options)
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        pid, _, path = holder.stdout.readline().rstrip("\n").partition(" ")
        daemon = os.pidfd_open(int(pid))
        try:
            yield Held(holder, daemon, Path(path))
        finally:
            holder.kill()
            support.give_up(Path(path), daemon)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_every_end_of_the_holder_ends_the_mount(number: signal.Signals) -> None:
    with held() as it:
        (it.path / "file").touch()
        it.assert_there()
        it.holder.send_signal(number)
        it.holder.wait(PATIENCE)
        it.assert_gone()


def stop(it: Held) -> None:
    """Stop the daemon, and wait until it is."""
    signal.pidfd_send_signal(it.daemon, signal.SIGSTOP)
    pid = re.findall(r"^Pid:\t(\d+)", fdinfo(it.daemon), re.MULTILINE)[0]
    support.ask_until(lambda: "State:\tT" in Path(f"/proc/{pid}/status").read_text())


def fdinfo(fd: int) -> str:
    return Path(f"/proc/self/fdinfo/{fd}").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_that_is_stopped_goes_too(number: signal.Signals) -> None:
    """And unmounts, for which it has to go on."""
    with held() as it:
        stop(it)
        it.holder.send_signal(number)
        it.holder.wait(PATIENCE)
        it.assert_gone()


def test_files_that_others_have_open_do_not_keep_it() -> None:
    with (
        held() as it,
        support.opened(it.path / "file", os.O_CREAT | os.O_RDWR) as fd,
    ):
        it.holder.kill()
        it.assert_gone()
        assert support.outcome(os.fstat, fd) in ("ENOTCONN", "ECONNABORTED")


def test_a_holder_that_is_a_zombie_has_ended() -> None:
    with held() as it:
        it.holder.kill()
        # No process reaps it.
        it.assert_gone()


def test_a_directory_of_the_users_stays(point: Path) -> None:
    with held(options=f"{{'mountpoint': {str(point)!r}}}") as it:
        it.holder.kill()
        it.assert_gone(scratch=False)
    assert os.listdir(point) == []


def test_a_fork_neither_keeps_it() -> None:
    """The child has all fds of its parent, and lives on."""
    body = "os.fork() or os.write(1, b'%d\\n' % os.getpid()); wait()"
    with held(body) as it:
        assert it.holder.stdout is not None
        child = os.pidfd_open(int(it.holder.stdout.readline()))
        it.holder.kill()
        it.assert_gone()
        assert not support.wait_readable(child, 0)
        assert it.holder.stdin is not None
        it.holder.stdin.close()
        assert support.wait_readable(child)
        os.close(child)


@pytest.mark.parametrize(
    "leave", ["os._exit(0)", "sys.exit()", "return", "raise RuntimeError"]
)
def test_nor_ends_it(point: Path, leave: str) -> None:
    """The child leaves in each possible way; it would leave the block, too."""
    body = (
        "pid = os.fork()\n"
        "        if pid == 0:\n"
        "            sys.stderr = open(os.devnull, 'w')\n"
        f"            {leave}\n"
        "        os.waitpid(pid, 0)\n"
        "        print(mount.control, flush=True)\n"
        "        wait()"
    )
    with held(body, f"{{'mountpoint': {str(point)!r}}}") as it:
        assert it.holder.stdout is not None
        control = Path(it.holder.stdout.readline().rstrip("\n"))
        it.assert_there()
        assert control.is_socket()
        it.holder.kill()
        it.assert_gone(scratch=False)
        assert not control.parent.exists()


def test_after_exec_it_is_the_same_process() -> None:
    body = "os.execlp('sh', 'sh', '-c', 'echo there; exec cat')"
    with held(body) as it:
        assert it.holder.stdin is not None
        assert it.holder.stdout is not None
        assert it.holder.stdout.readline() == "there\n"
        it.assert_there()
        it.holder.stdin.close()
        it.assert_gone()
        assert it.holder.wait(PATIENCE) == 0


def test_a_thread_that_made_it_may_end() -> None:
    """The block is left open: its generator is kept."""
    body = "wait()"
    prefix = "\n".join(
        [
            "import inaccfs, sys, threading",
            "kept = []",
            "def hold():",
            "    kept.append(inaccfs.mounted())",
            "    mount = kept[0].__enter__()",
            "    print(mount.pid, mount.path, flush=True)",
            "thread = threading.Thread(target=hold)",
            "thread.start()",
            "thread.join()",
            "print('joined', flush=True)",
            "sys.stdin.read()",
            "import os",
            "os._exit(0)",
            "",
        ]
    )
    for stopped in (False, True):
        with held(body, prefix=prefix) as it:
            assert it.holder.stdout is not None
            assert it.holder.stdout.readline() == "joined\n"
            it.assert_there()
            if stopped:
                stop(it)
            it.holder.kill()
            it.assert_gone()


# Runs in the daemon before its own code: waits until the holder has ended.
LATE: Final = """
import os, sys
if "fsname=late" in sys.orig_argv:
    import select
    poller = select.poll()
    poller.register(int(sys.orig_argv[sys.orig_argv.index("--holder-fd") + 1]), 1)
    print(os.getpid(), os.path.dirname(sys.orig_argv[-1]), flush=True)
    poller.poll()
"""


def test_a_holder_that_ends_before_the_daemon_is_ready(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LATE)
    source = "import inaccfs\nwith inaccfs.mounted(options='fsname=late'): pass"
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{TOP}"},
    ) as holder:
        assert holder.stdout is not None
        pid, scratch = holder.stdout.readline().split()
        daemon = os.pidfd_open(int(pid))
        assert os.listdir(scratch)
        holder.kill()
        assert support.wait_readable(daemon)
        os.close(daemon)
    assert not os.path.exists(scratch)
    assert mountinfo.below(scratch) == []


def test_an_interrupt_as_the_daemon_starts_leaves_nothing() -> None:
    """Ctrl-C when there is a daemon, and `mounted` does not know of it yet."""
    source = (
        "import signal, subprocess, inaccfs\n"
        "made = []\n"
        "class Popen(subprocess.Popen):\n"
        "    def __init__(self, *args, **options):\n"
        "        super().__init__(*args, **options)\n"
        "        made.append(self)\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "subprocess.Popen = Popen\n"
        "try:\n"
        "    with inaccfs.mounted(): pass\n"
        "except KeyboardInterrupt:\n"
        "    print(made[0].returncode is not None)\n"
    )
    ran = support.run(sys.executable, "-c", source)
    assert (ran.stdout, ran.stderr) == ("True\n", "")


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while `mounted` waits for its daemon."""
    (tmp_path / "sitecustomize.py").write_text(
        LATE.replace("poller.poll()", "poller.poll(60000)")
    )
    source = (
        "import inaccfs\n"
        "try:\n"
        "    with inaccfs.mounted(options='fsname=late'): pass\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}:{TOP}"},
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        pid, scratch = holder.stdout.readline().split()
        holder.send_signal(signal.SIGINT)
        assert holder.stdout.readline() == "interrupted\n"
        # Its holder lives, and has ended it.
        assert not os.path.exists(f"/proc/{pid}")
        assert not os.path.exists(scratch)
        holder.stdin.write("\n")


def test_a_mount_in_the_background_belongs_to_no_process(
    point: Path, scratch: Path
) -> None:
    """It belongs neither to the command nor to the shell that ran it."""
    with background(point, scratch) as pid:
        run("true")
        assert support.status_of(point).pid == pid
        support.cli("umount", point)


@support.needs_root
def test_mounted_in_a_user_namespace() -> None:
    source = (
        "import inaccfs, os\n"
        "with inaccfs.mounted(size='4m') as mount:\n"
        "    (mount.path / 'file').touch()\n"
        "    print(mount.status().size, mount.path)\n"
        "assert mount.process.returncode == 0\n"
    )
    unshare = ("unshare", "--user", "--map-root-user", "--mount")
    if run(*unshare, "true", status=None).returncode:
        pytest.skip("no user namespaces")
    output = run(*unshare, sys.executable, "-c", source).stdout
    size, path = output.split()
    assert int(size) == 4 << 20
    assert not os.path.exists(path)


@support.needs_root
def test_a_holder_in_a_pid_namespace_of_its_own() -> None:
    """It is killed by the kernel when the first process there ends."""
    source = (
        "import inaccfs, os, signal\n"
        "with inaccfs.mounted() as mount:\n"
        "    print(mount.path, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The mount is in the namespace, and so is the process that looks for it later.
    inside = (
        f'path=$("{sys.executable}" -c "$0"); echo "$path"; kill -0 1; '
        'while pgrep -f -- "--scratch ${path%/*}" >/dev/null; do :; done; '
        'cut -d " " -f 5 /proc/self/mountinfo | grep -cxF "$path"'
    )
    unshare = ("unshare", "--pid", "--fork", "--mount-proc")
    ran = run(*unshare, "sh", "-c", inside, source, status=None)
    path, count = ran.stdout.split()
    assert count == "0"
    assert not os.path.exists(path)
