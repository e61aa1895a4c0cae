"""A mount of a user without privileges: through fusermount3, and without the seal.

Each test has its own mount namespace, with a /dev/fuse that all users may open, and
runs inaccfs there as uid 65534.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inaccfs.runtime import escape
from tests.mount import support
from tests.mount.namespaces import PrivateNamespace, private_namespace, quoted
from tests.mount.support import GIB, NOBODY, TOP, children_of, run
from tests.mount.test_helper import end

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.fuse, support.needs_root]


class Nobody:
    """A user without privileges, with a home and a runtime directory."""

    def __init__(
        self, namespace: PrivateNamespace, home: Path, root: str = "/"
    ) -> None:
        self.namespace = namespace
        self.home = home
        # The root directory of the user's processes.
        self._root = root
        self.point = home / "mnt"
        self.runtime = home / "run"
        self.log = home / "log"
        self.environment = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": ":".join(str(home / name) for name in BINDS),
            "LD_LIBRARY_PATH": str(home / "python" / "lib"),
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def command(self, *words: str | Path) -> list[str]:
        """The command line that runs *command* as this user."""
        return self.namespace.enter(
            *("chroot", self._root),
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
            *("env", "-i", *(f"{k}={v}" for k, v in self.environment.items())),
            *words,
        )

    def python(self, *words: str | Path) -> list[str]:
        """The command line of a Python program."""
        name = Path(sys.executable).resolve().name
        return self.command(self.home / "python" / "bin" / name, *words)

    def run(
        self, *words: str | Path, status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user."""
        return run(*self.command(*words), status=status)

    def inaccfs(
        self, *words: str | Path, status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run inaccfs as this user."""
        return run(*self.python("-m", "inaccfs", *words), status=status)

    def umount_stopped(self) -> str:
        """What inaccfs umount prints, with status 0, if the daemon is stopped."""
        return run(*self.python("-c", support.HASTY, "umount", self.point)).stderr

    def complaint(self, *words: str | Path) -> str:
        """The error message of inaccfs: exactly one line."""
        message = self.inaccfs(*words, status=1).stderr
        assert message.startswith("inaccfs: "), message
        assert message.count("\n") == 1, message
        return message

    @contextmanager
    def mounted(self, *words: str) -> Iterator[str]:
        """A mount; gives its warnings. Asserts at the end that nothing is left."""
        warnings = self.inaccfs("mount", "--log", self.log, *words, self.point).stderr
        daemon = os.pidfd_open(int(self.pid()))
        try:
            yield warnings
            if support.wait_readable(daemon, 0) is False:
                self.inaccfs("umount", self.point)
            assert support.wait_readable(daemon, 0)
            assert self.run("ls", "-A", self.runtime).stdout == "inaccfs\n"
            assert self.run("ls", "-A", self.runtime / "inaccfs").stdout == ""
            assert self.run("ls", "-A", self.point).stdout == ""
            support.assert_clean(self.run("cat", self.log, status=None).stdout)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(daemon, signal.SIGKILL)
            support.wait_readable(daemon)
            os.close(daemon)

    def status(self) -> dict[str, object]:
        """The status of the mount."""
        words = ("getfattr", "--only-values", "-n", "user.inaccfs.status", "-h")
        found: dict[str, object] = json.loads(
            self.run(*words, "--absolute-names", self.point).stdout
        )
        return found

    def pid(self) -> str:
        """The pid of the daemon."""
        return str(self.status()["pid"])


PACKAGES = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
# By name in the home: what the user may read there. Only root may enter the original
# directories.
BINDS = {
    f"lib{number}": Path(path)
    for number, path in enumerate(dict.fromkeys([str(TOP), *PACKAGES]))
} | {"python": Path(sys.base_prefix)}


def setup_script(home: Path) -> str:
    """The shell script that makes the namespace."""
    lines = [
        "mount -t tmpfs -o mode=755 inaccfs-test HOME",
        "cd HOME",
        "mkdir mnt run dev",
    ]
    for name, path in BINDS.items():
        lines += [f"mkdir {name}", f"mount --bind {quoted(path)} {name}"]
    lines += [
        "chown UID:UID . mnt run; chmod 700 run",
        "mount -t tmpfs -o mode=755,dev inaccfs-test dev",
        "mknod -m 666 dev/fuse c 10 229; chmod 666 dev/fuse",
        "mount --bind dev/fuse /dev/fuse",
    ]
    script = "\n".join(lines)
    return script.replace("HOME", quoted(home)).replace("UID", str(NOBODY))


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


def need_user_namespace(user: Nobody) -> None:
    """Skip unless *user* may make a user namespace."""
    ran = user.run("unshare", "--user", "--mount", "true", status=None)
    if ran.returncode:
        pytest.skip(f"no user namespaces: {ran.stderr.strip()}")


def test_a_user_mounts_through_fusermount3(nobody: Nobody) -> None:
    need_user_namespace(nobody)
    with nobody.mounted() as warnings:
        assert warnings.startswith("inaccfs: warning: mmap: not sealed (needs ")
        assert warnings.count("\n") == 1
        status = nobody.status()
        assert status["backing"] == "private tmpfs"
        assert status["sealed"] is False
        assert str(status["control"]).startswith(str(nobody.runtime / "inaccfs"))
        shown = nobody.inaccfs("status", nobody.point).stdout
        assert f"mmap       {status['mmap']}" in shown
        output = nobody.run(
            "findmnt", "-n", "-o", "FSTYPE,OPTIONS", nobody.point
        ).stdout
        assert output.startswith("fuse.inaccfs ")
        assert {"nosuid", "nodev", "noexec", f"user_id={NOBODY}"} <= set(
            output.split()[1].split(",")
        )


@pytest.mark.parametrize("option", ["relatime", "strictatime", "noatime"])
def test_a_user_has_times_of_access_and_of_birth(nobody: Nobody, option: str) -> None:
    script = (
        "mkdir d; ln -s x l; touch -h -d @1000 d l; ls d; readlink l; touch f;"
        "chmod 6755 f; truncate -s 4096 f; stat -c '%n %X %a' d l f; stat -c %w f"
    )
    with nobody.mounted("-o", option):
        output = nobody.run("sh", "-c", f"cd {nobody.point} && {script}").stdout
    target, directory, link, file, birth = output.splitlines()
    assert target == "x"
    for line in (directory, link):
        assert (line.split()[1] == "1000") is (option == "noatime")
    assert file.endswith(" 755")
    assert birth != "-"


def test_the_rules_are_the_same_for_a_user(nobody: Nobody) -> None:
    file = nobody.point / "file"
    with nobody.mounted():
        nobody.run("truncate", "-s", "16k", file)
        nobody.run("fallocate", "-l", "8k", file)
        assert nobody.run("truncate", "-s", "4k", file, status=None).returncode == 1
        assert (
            nobody.run("stat", "-c", "%s %b %u", file).stdout == f"16384 16 {NOBODY}\n"
        )
        nobody.run("fallocate", "-p", "-o", "4k", "-l", "4k", file)
        assert nobody.run("stat", "-c", "%b", file).stdout == "8\n"
        ran = nobody.run("fallocate", "-p", "-o", "1", "-l", "4k", file, status=1)
        assert os.strerror(errno.EINVAL) in ran.stderr
        nobody.run("chmod", "000", file)
        nobody.run("chmod", "4700", file)
        nobody.run("setfattr", "-n", "user.a", "-v", "b", file)
        nobody.run("touch", "-d", "@5", file)
        nobody.run("ln", file, nobody.point / "link")
        nobody.run("mv", file, nobody.point / "moved")
        refusals: tuple[list[str | Path], ...] = (
            ["chown", "0", nobody.point / "link"],
            ["mknod", nobody.point / "null", "c", "1", "3"],
            ["setfattr", "-n", "trusted.a", "-v", "b", nobody.point / "link"],
        )
        for refused in refusals:
            ran = nobody.run(*refused, status=1)
            assert os.strerror(errno.EPERM) in ran.stderr


PROBE = """
import json, mmap, os, signal, sys
from tests.mount import raw
from tests.mount.support import PAGE, outcome

def touch_private(fd):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        area = mmap.mmap(fd, PAGE, flags=mmap.MAP_PRIVATE)
        area[0]
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)

fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
raw.fallocate(fd, 0, 0, PAGE)
print(json.dumps({
    "read": outcome(os.read, fd, 1),
    "write": outcome(os.write, fd, b"x"),
    "pread": outcome(os.pread, fd, 1, 0),
    "pwrite": outcome(os.pwrite, fd, b"x", 0),
    "lseek": outcome(os.lseek, fd, 0, os.SEEK_SET),
    "SEEK_DATA": outcome(os.lseek, fd, 0, os.SEEK_DATA),
    "MAP_SHARED": outcome(mmap.mmap, fd, PAGE, flags=mmap.MAP_SHARED),
    "MAP_PRIVATE": touch_private(fd),
    "O_DIRECT": outcome(os.open, sys.argv[1], os.O_RDWR | os.O_DIRECT),
}))
"""


def test_without_the_seal_a_private_mapping_can_be_made_but_not_touched(
    nobody: Nobody,
) -> None:
    """docs/mounting.md, The seal; pread and lseek have the errnos of v8 then."""
    with nobody.mounted():
        ran = run(*nobody.python("-c", PROBE, nobody.point / "file"))
    assert json.loads(ran.stdout) == {
        "read": "EINVAL",
        "write": "EINVAL",
        "pread": "ESPIPE",
        "pwrite": "ESPIPE",
        "lseek": "ESPIPE",
        "SEEK_DATA": "ESPIPE",
        "MAP_SHARED": "ENODEV",
        "MAP_PRIVATE": -signal.SIGBUS,
        "O_DIRECT": "EINVAL",
    }


def test_not_even_the_users_own_processes_reach_the_backing(nobody: Nobody) -> None:
    """They cannot use /proc/PID/fd; see PR_SET_DUMPABLE of prctl(2)."""
    with nobody.mounted():
        ran = nobody.run("ls", f"/proc/{nobody.pid()}/fd/", status=None)
        assert os.strerror(errno.EACCES) in ran.stderr


def test_a_users_helper_is_taken_first_and_cannot_be_looked_into(
    nobody: Nobody,
) -> None:
    """The same is true of the helper that replaces it."""
    with nobody.mounted():
        daemon = int(nobody.pid())
        for _ in range(2):
            support.ask_until(lambda: len(children_of(daemon)) == 2)
            for pid in children_of(daemon):
                score = Path(f"/proc/{pid}/oom_score_adj").read_text()
                assert score == "1000\n"
                ran = nobody.run("ls", f"/proc/{pid}/fd/", status=None)
                assert os.strerror(errno.EACCES) in ran.stderr
            before = children_of(daemon)
            end(before[0])
            support.ask_until(lambda: before[0] not in children_of(daemon))  # noqa: B023


def test_the_mount_is_the_users_alone(nobody: Nobody) -> None:
    with nobody.mounted():
        message = nobody.namespace.run("ls", nobody.point, status=None).stderr
        assert os.strerror(errno.EACCES) in message


def test_a_users_daemon_ends_well_by_a_signal(nobody: Nobody) -> None:
    with nobody.mounted():
        nobody.run("touch", nobody.point / "file")
        pid = nobody.pid()
        nobody.run("kill", pid)
        support.wait_for_exit(int(pid))


IGNORING = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from inaccfs.cli import main
sys.exit(main(["umount", sys.argv[1]]))
"""


def test_a_users_busy_mount_goes_lazily(nobody: Nobody) -> None:
    with (
        nobody.mounted(),
        subprocess.Popen(
            nobody.command(
                "sh", "-c", f"exec 3>{nobody.point}/file; echo open; read line"
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as user,
    ):
        assert user.stdout is not None
        assert user.stdin is not None
        pid = int(nobody.pid())
        assert user.stdout.readline() == "open\n"
        message = nobody.complaint("umount", nobody.point)
        assert "is busy: close what is open there" in message
        # The exit status of fusermount3 is lost then.
        ignoring = ("-c", IGNORING, nobody.point)
        message = run(*nobody.python(*ignoring), status=1).stderr
        assert "is busy: close what is open there" in message
        nobody.inaccfs("umount", "--lazy", nobody.point)
        user.stdin.write("done\n")
        user.stdin.close()
        support.wait_for_exit(pid)


def test_a_users_long_allocation_can_be_killed(nobody: Nobody) -> None:
    support.need_memory(4 * GIB)
    file = nobody.point / "file"

    def begun() -> bool:
        output = nobody.run("stat", "-f", "-c", "%b %f", nobody.point).stdout.split()
        return output[0] != output[1]

    with nobody.mounted():
        with subprocess.Popen(nobody.command("fallocate", "-l", "4g", file)) as child:
            support.ask_until(begun)
            child.kill()
            assert child.wait(support.PATIENCE) == -signal.SIGKILL
        assert nobody.run("stat", "-c", "%b", file).stdout == "0\n"


# --- where the user is root of a user namespace -------------------------------


@pytest.mark.parametrize("runtime", ["$XDG_RUNTIME_DIR", "/tmp"])
def test_root_of_a_user_namespace_has_places_of_its_own(
    nobody: Nobody, runtime: str
) -> None:
    """There /run belongs to another user, and the test sets XDG_RUNTIME_DIR."""
    need_user_namespace(nobody)
    if runtime == "/tmp":
        # This path is as long as a socket's may be.
        del nobody.environment["XDG_RUNTIME_DIR"]
        runtime = "/tmp/inaccfs-0"
        if os.path.lexists(runtime):
            pytest.skip(f"somebody has {runtime}")
    else:
        runtime = f"{nobody.runtime}/inaccfs"
    python = " ".join(nobody.python("-m", "inaccfs")[-3:])
    script = f"""
    set -eu
    {python} mount {nobody.point}
    {python} status --json {nobody.point}
    {python} umount {nobody.point}
    ls -A {runtime}
    [ {runtime} != /tmp/inaccfs-0 ] || rmdir {runtime}
    """
    ran = nobody.run(
        "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script
    )
    first, *rest = ran.stdout.splitlines()
    found = json.loads(first)
    name = escape(str(nobody.point))
    assert found["control"] == f"{runtime}/{name}.sock"
    assert found["log"] == f"{runtime}/{name}.log"
    assert rest == []


# --- where user namespaces are forbidden --------------------------------------


def fallback(user: Nobody) -> Path:
    """The directory that replaces the private tmpfs."""
    (name,) = set(user.run("ls", "-A", user.runtime).stdout.split()) - {"inaccfs"}
    return user.runtime / name


def test_without_user_namespaces_a_directory_takes_the_tmpfss_place(
    confined: Nobody,
) -> None:
    with confined.mounted() as warnings:
        assert (
            "warning: no user namespace (Operation not permitted): the memory"
            in warnings
        )
        place = fallback(confined)
        assert f"is in {place}, which your own processes can read" in warnings
        output = confined.run("stat", "-c", "%a %u %F", place).stdout
        assert output == f"700 {NOBODY} directory\n"
        confined.run("fallocate", "-l", "4k", confined.point / "file")
        assert confined.run("ls", place).stdout == "file\n"


def test_options_of_a_tmpfs_need_one_of_ones_own(confined: Nobody) -> None:
    message = confined.complaint(
        "mount", "--log", confined.log, "--size=1m", confined.point
    )
    assert "a user namespace was refused (Operation not permitted)" in message
    assert "leave them out, or mount as root" in message


def test_a_killed_daemons_directory_is_removed_by_umount(confined: Nobody) -> None:
    with confined.mounted():
        confined.run("fallocate", "-l", "4k", confined.point / "file")
        place = fallback(confined)
        pid = int(confined.pid())
        os.kill(pid, signal.SIGKILL)
        support.wait_for_exit(pid)
        assert confined.run("ls", place).stdout == "file\n"
        message = confined.complaint("mount", confined.point)
        assert "left from a daemon that died: inaccfs umount" in message

        confined.inaccfs("umount", confined.point)


# --- a daemon that does not answer --------------------------------------------


def test_a_users_stopped_daemon_is_unmounted_and_reported(nobody: Nobody) -> None:
    # Where the machine has fusectl mounted, its user could abort the connection.
    nobody.namespace.shell("umount /sys/fs/fuse/connections || true")
    nobody.inaccfs("mount", "--log", nobody.log, nobody.point)
    pid = int(nobody.pid())
    daemon = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGSTOP)
        message = nobody.umount_stopped()
        assert message.startswith(
            f"inaccfs: {nobody.point} is unmounted; its daemon did not answer, and "
            "only root can abort its connection (echo 1 > /sys/fs/fuse/connections/"
        )
        assert f"{pid} is still there with its memory: kill -CONT {pid} " in message
        assert message.count("\n") == 1
        assert nobody.run("ls", "-A", nobody.point).stdout == ""
        os.kill(pid, signal.SIGCONT)
        assert support.wait_readable(daemon)
        support.assert_clean(nobody.run("cat", nobody.log, status=None).stdout)
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        support.wait_readable(daemon)
        os.close(daemon)


@pytest.mark.parametrize("state", ["works", "stopped", "dead"])
def test_root_unmounts_a_users_mount(nobody: Nobody, state: str) -> None:
    """root may not access it: only its owner may."""
    nobody.inaccfs("mount", "--log", nobody.log, nobody.point)
    pid = int(nobody.pid())
    daemon = os.pidfd_open(pid)
    try:
        umount = support.inaccfs_command("umount", nobody.point)
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
            umount = support.hasty_command("umount", nobody.point)
        elif state == "dead":
            os.kill(pid, signal.SIGKILL)
            support.wait_readable(daemon)
        message = nobody.namespace.run(*umount).stderr
        if state == "works":
            assert message == ""
            assert support.wait_readable(daemon, 0)
        elif state == "stopped":
            assert "did not answer, so its connection is aborted" in message
        else:
            assert "its daemon was dead" in message
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        support.wait_readable(daemon)
        os.close(daemon)


def test_a_user_aborts_by_fusectl(nobody: Nobody) -> None:
    """The files of fusectl belong to the mounts' owners."""
    place = f"{nobody.home}/connections"
    nobody.namespace.shell(f"mkdir {place}; mount -t fusectl none {place}")
    nobody.inaccfs("mount", "--log", nobody.log, nobody.point)
    pid = int(nobody.pid())
    daemon = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGSTOP)
        message = nobody.umount_stopped()
        assert "its daemon did not answer, so its connection is aborted" in message
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        support.wait_readable(daemon)
        os.close(daemon)


def test_a_users_mounted_goes_with_its_holder(nobody: Nobody) -> None:
    source = (
        "import inaccfs, os, signal\n"
        "with inaccfs.mounted() as mount:\n"
        "    print(mount.pid, mount.path, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        nobody.python("-c", source),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        pid, path = holder.stdout.readline().split()
        daemon = os.pidfd_open(int(pid))
        holder.kill()
        assert support.wait_readable(daemon)
        os.close(daemon)
    assert path not in nobody.namespace.run("cat", "/proc/self/mountinfo").stdout
    assert nobody.run("ls", Path(path).parent, status=None).returncode == 2


# --- a mountpoint that is replaced --------------------------------------------


def fake_fusermount3(user: Nobody, script: str) -> None:
    """Replace fusermount3 by a shell *script*; $real is the original."""
    place = user.home / "bin"
    real = shutil.which("fusermount3")
    text = f"#!/bin/sh\nreal={real} home={user.home}\n{script}\n"
    user.namespace.shell(
        f"mkdir -p {place}; printf %s {shlex.quote(text)} > {place}/fusermount3; "
        f"chmod 755 {place}/fusermount3"
    )
    user.environment["PATH"] = f"{place}:/usr/bin:/bin"


WORDS = '"$@"'
SWAP = "mv $home/mnt $home/moved; ln -s victim $home/mnt"


@pytest.mark.parametrize(
    "script",
    [
        # Before fusermount3 checks the path; it runs in the directory itself, wherever
        # that is.
        f"{SWAP}; exec $real {WORDS}",
        # After it has checked the path, in its own path walk.
        f'{SWAP}; cd /; exec $real "$1" "$2" $home/mnt/.',
        # After it has mounted: only a directory above the mountpoint can be renamed
        # then.
        f"$real {WORDS} && mv $home/dir $home/away && mkdir -p $home/dir/mnt",
        # The mount is made, and then fusermount3 fails.
        f"$real {WORDS}; echo fusermount3: oh >&2; exit 1",
    ],
    ids=["before", "inside", "after", "failed"],
)
def test_a_users_mountpoint_that_is_replaced_leaves_no_mount(
    nobody: Nobody, script: str
) -> None:
    nobody.run("mkdir", "-p", nobody.home / "victim", nobody.home / "dir" / "mnt")
    # The script does not change unmounting.
    fake_fusermount3(nobody, f'[ "$1" = -o ] || exec $real {WORDS}; {script}')
    point = nobody.home / "dir" / "mnt" if "$home/dir" in script else nobody.point
    message = nobody.complaint("mount", "--log", nobody.log, point)
    if "oh" in script:
        assert message == f"inaccfs: cannot mount on {point}: oh\n"
    else:
        assert (
            f"mountpoint {point} was replaced while it was to be mounted on" in message
        )
    left = nobody.namespace.run("cat", "/proc/self/mountinfo").stdout
    assert f"{nobody.home}/" in left
    assert not [
        line
        for line in left.splitlines()
        if "fuse.inaccfs" in line and f"{nobody.home}/" in line
    ]


# Mounts while another thread swaps directories; prints how often each happened.
SWAPPER = """
import os, sys, threading, time
from inaccfs.errors import MountError
from inaccfs import mountinfo
from inaccfs.fuse import finding, mounting, unmounting
from inaccfs.fuse.mountpoint import Mountpoint

home = sys.argv[1]
point, moved, victim = (os.path.join(home, name) for name in ("mnt", "m2", "victim"))
os.mkdir(victim)
stop = threading.Event()

def swap():
    while not stop.is_set():
        try:
            os.rename(point, moved)
        except OSError:
            continue
        os.symlink(victim, point)
        os.unlink(point)
        os.rename(moved, point)

thread = threading.Thread(target=swap, daemon=True)
thread.start()
made = refused = 0
end = time.monotonic() + 30
while made + refused < 60 and time.monotonic() < end:
    try:
        with Mountpoint.open(point) as mountpoint:
            if mountpoint.path == victim:
                # Chosen by who looks while the link is there: a link may be named.
                continue
            new = mounting.mount(mountpoint, mounting.FuseOptions())
    except MountError as exc:
        refused += 1
        assert str(exc).count("\\n") == 0
        assert not [m for m in finding.mounts() if m.path.startswith(home + "/")]
    else:
        made += 1
        assert new.info.path == point
        os.close(new.fuse)
        unmounting.unmount(new.info, lazy=True)
stop.set()
thread.join()
assert not [m for m in finding.mounts() if m.path.startswith(home + "/")]
print(made, refused)
"""


def test_a_users_mountpoint_that_is_replaced_all_the_time(nobody: Nobody) -> None:
    run(*nobody.python("-c", SWAPPER, nobody.home))


def test_roots_mountpoint_that_is_replaced_all_the_time(nobody: Nobody) -> None:
    nobody.namespace.run(sys.executable, "-c", SWAPPER, nobody.home)


@pytest.mark.parametrize("name", ["with space", "new\nline", "tab\tand\\", b"\xff\xfe"])
def test_a_users_mountpoint_with_any_name(nobody: Nobody, name: str | bytes) -> None:
    nobody.point = nobody.home / os.fsdecode(name)
    nobody.run("mkdir", nobody.point)
    with nobody.mounted():
        nobody.run("touch", nobody.point / "file")


# --- what fusermount3 refuses -------------------------------------------------


def test_a_mountpoint_of_another_user_is_refused(nobody: Nobody) -> None:
    nobody.namespace.shell(f"mkdir -m 755 {nobody.home}/roots")
    message = nobody.complaint("mount", "--log", nobody.log, nobody.home / "roots")
    assert f"cannot mount on {nobody.home}/roots: " in message


def test_allow_other_is_root_s_to_grant(nobody: Nobody) -> None:
    """user_allow_other of /etc/fuse.conf; fuse(8)."""
    conf = nobody.home / "conf"
    nobody.namespace.shell(f": > {conf}; mount --bind {conf} /etc/fuse.conf")
    message = nobody.complaint(
        "mount", "--log", nobody.log, "--allow-other", nobody.point
    )
    assert "user_allow_other" in message


def test_a_dev_fuse_without_permission_is_reported(nobody: Nobody) -> None:
    nobody.namespace.run("chmod", "600", "/dev/fuse")
    message = nobody.complaint("mount", "--log", nobody.log, nobody.point)
    assert "/dev/fuse: Permission denied: chmod 0666 /dev/fuse as root" in message


def test_a_missing_fusermount3_is_reported(nobody: Nobody) -> None:
    env = shutil.which("env")
    assert env is not None
    nobody.namespace.shell(f"mkdir {nobody.home}/bin; ln -s {env} {nobody.home}/bin")
    nobody.environment["PATH"] = str(nobody.home / "bin")
    message = nobody.complaint("mount", "--log", nobody.log, nobody.point)
    assert "no fusermount3: install the package fuse3, or mount as root" in message


def test_a_runtime_directory_of_another_user_is_refused(nobody: Nobody) -> None:
    nobody.namespace.shell(f"mkdir {nobody.runtime}/inaccfs")
    message = nobody.complaint("mount", nobody.point)
    assert "is not a directory of yours: remove it, or set XDG_RUNTIME_DIR" in message


MODES = """
import os, sys, inaccfs
os.umask(int(sys.argv[1], 8))
def show(path):
    print(oct(os.lstat(path).st_mode & 0o7777), os.path.basename(path))
with inaccfs.mounted() as mount:
    os.close(os.open(mount.path / "file", os.O_RDWR | os.O_CREAT, 0o666))
    show(mount.path)
    show(mount.control)
    show(mount.log)
    show(mount.path.parent)
try:
    with inaccfs.mounted(options="backing=/proc"):
        pass
except inaccfs.MountError as exc:
    print(exc)
"""


@pytest.mark.parametrize("mask", ["0", "022", "077", "0777"])
def test_what_mounts_make_does_not_depend_on_the_umask(
    nobody: Nobody, mask: str
) -> None:
    """Only the files in the mount do, and those that the user names."""
    said = run(*nobody.python("-c", MODES, mask)).stdout.splitlines()
    *made, scratch, refusal = said
    assert made == ["0o700 mnt", "0o600 control", "0o600 log"]
    assert scratch.startswith("0o700 inaccfs-")
    assert refusal.startswith("backing /proc is on proc: ")

    nobody.environment["XDG_RUNTIME_DIR"] = str(nobody.runtime / "missing")
    python = nobody.python("-m", "inaccfs", "mount", "-v", nobody.point)
    at = python.index("-m")
    interpreter = python[at - 1]
    run(
        *python[: at - 1],
        *("sh", "-c", f'umask {mask}; exec "$@"', "sh", interpreter, *python[at:]),
    )
    try:
        places = "missing", "missing/inaccfs"
        modes = [
            nobody.run("stat", "-c", "%a", nobody.runtime / place).stdout
            for place in places
        ]
        assert modes == ["700\n", "700\n"]
        found = nobody.run("sh", "-c", f"stat -c %a {nobody.runtime}/missing/inaccfs/*")
        assert found.stdout == "600\n600\n"
    finally:
        nobody.inaccfs("umount", nobody.point)
