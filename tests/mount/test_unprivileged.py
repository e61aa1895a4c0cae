"""A mount of a user without privileges: through fusermount3, and without the seal.

Each test has its own mount namespace, with a /dev/fuse that all users may open, and
runs inaccfs there as uid 65534.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.mount import support
from tests.mount.nobody import Nobody, need_user_namespace
from tests.mount.support import GIB, NOBODY, children_of, run
from tests.mount.test_helper import end

pytestmark = [pytest.mark.fuse, support.needs_root]


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


# --- a mountpoint that is replaced --------------------------------------------


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
        "sh",
        "-c",
        f'umask {mask}; exec "$@"',
        "sh",
        interpreter,
        *python[at:],
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
