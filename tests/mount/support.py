"""What the tests that mount for real have in common.

Everything here is a context manager or a plain function, usable without pytest. A
mount is asserted to end as it should: status 0, a log without complaints, and the
mountpoint free.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
import subprocess
import sys
import time
from contextlib import (
    ExitStack,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
    suppress,
)
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

import inaccfs
from inaccfs import status as status_
from inaccfs.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from inaccfs.status import Status

PAGE: Final = 4096
MIB: Final = 1 << 20
GIB: Final = 1 << 30

NOBODY: Final = 65534

TOP: Final = Path(inaccfs.__file__).resolve().parent.parent
"""The directory that `import inaccfs` finds the package in."""

# For waits of milliseconds. It only decides how long a failing test takes.
PATIENCE: Final = 60.0

# A call that a bug would delay by a minute, or for ever, takes less time than this.
SOON: Final = 30.0

ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(TOP), "LC_ALL": "C.UTF-8"}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def why_no_fuse() -> str | None:
    """Why nothing can be mounted here, or None."""
    try:
        mode = os.stat("/dev/fuse").st_mode
    except FileNotFoundError:
        return "no /dev/fuse"
    return None if stat.S_ISCHR(mode) else "/dev/fuse is not a device"


def need_memory(size: int) -> None:
    """Skip the test unless *size* bytes are available, with room to spare."""
    available = meminfo("MemAvailable")
    if available < size + GIB // 2:
        pytest.skip(f"needs {size // MIB} MiB of memory, has {available // MIB}")


def meminfo(name: str) -> int:
    """One line of /proc/meminfo, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            key, _, rest = line.partition(":")
            if key == name:
                return int(rest.split()[0]) * 1024
    raise AssertionError(f"no {name} in /proc/meminfo")


# --- mounts -------------------------------------------------------------------


def is_mounted(path: str | Path) -> bool:
    """Whether there is an inaccfs mount at *path*, without asking its daemon."""
    with open("/proc/self/mountinfo", "rb") as lines:
        found = [line.split() for line in lines]
    # Spaces and the like are written as \040 there; see proc(5).
    names = [line[4].decode("unicode_escape").encode("latin-1") for line in found]
    types = [line[line.index(b"-") + 1] for line in found]
    return (os.fsencode(path), b"fuse.inaccfs") in zip(names, types, strict=True)


def status_of(path: Path) -> Status:
    """The status of the mount at *path*."""
    return status_.decode(os.getxattr(path, status_.STATUS_XATTR))


def assert_clean(log: str) -> None:
    """Nothing in a daemon's log is a bug or an error."""
    assert "Traceback" not in log, log
    assert "ERROR" not in log, log


@contextmanager
def mounted(path: Path | None = None, **options: Any) -> Iterator[inaccfs.Mount]:
    """`inaccfs.mounted`; at the end it asserts that nothing is left of the mount."""
    with ExitStack() as stack:
        with inaccfs.mounted(path, **options) as mount:
            # The log is open because its name is removed with the mount.
            log = stack.enter_context(mount.log.open(errors="replace"))
            yield mount
        assert mount.process.returncode == 0
        assert not is_mounted(mount.path)
        assert not mount.control.exists()
        assert_clean(log.read())


@contextmanager
def doomed(path: Path | None = None) -> Iterator[inaccfs.Mount]:
    """A mount whose daemon is killed in the block, so that it does not end well."""
    with (
        pytest.raises(inaccfs.InaccfsError, match="ended with status -9"),
        inaccfs.mounted(path) as mount,
    ):
        yield mount


def kill(mount: inaccfs.Mount) -> None:
    """End a daemon as the kernel does when memory is short."""
    mount.process.kill()
    mount.process.wait(PATIENCE)


def inaccfs_command(*arguments: str | Path) -> list[str]:
    """The command line of inaccfs, for `subprocess`."""
    return [sys.executable, "-m", "inaccfs", *map(str, arguments)]


def program(setting: str) -> str:
    """A Python program that is inaccfs after the statement *setting*.

    It shortens a time limit that the test knows to be reached.
    """
    return f"""
import sys
{setting}
from inaccfs.cli import main
sys.exit(main(sys.argv[1:]))
"""


HASTY: Final = program("from inaccfs.fuse import finding; finding.DAEMON_SECONDS = 0.1")
"""An inaccfs that soon takes a daemon to be stopped, for one that is."""


def hasty_command(*arguments: str | Path) -> list[str]:
    """The command line of an inaccfs for a daemon that is stopped."""
    return [sys.executable, "-c", HASTY, *map(str, arguments)]


def run(
    *command: str | Path | int,
    status: int | None = 0,
    env: Mapping[str, str] = ENVIRONMENT,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and check its exit *status*; None allows any."""
    result = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=PATIENCE,
        check=False,
        env=env,
        **options,
    )
    if status is not None:
        assert result.returncode == status, (command, result.stdout, result.stderr)
    return result


def cli(
    *arguments: str | Path, status: int = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run inaccfs with *arguments*, and check its exit *status*.

    status and umount run in this process, unless there are *options* for `subprocess`,
    because the start of Python takes longer than the commands.
    """
    if arguments[:1] in (("status",), ("umount",)) and not options:
        result = run_here(*arguments)
        assert result.returncode == status, result
        return result
    return run(*inaccfs_command(*arguments), status=status, **options)


def run_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run inaccfs with *arguments* in this process."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            status = main(list(map(str, arguments)))
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else 1
    return subprocess.CompletedProcess(
        arguments, status, out.getvalue(), err.getvalue()
    )


def complaint(*arguments: str | Path, status: int = 1, **options: Any) -> str:
    """The error message of inaccfs: exactly one line, with *status*.

    The status is 2 if the command line is wrong, and 1 if the command fails.
    """
    result = cli(*arguments, status=status, **options)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("inaccfs: "), lines[0]
    return lines[0]


def without_progress(text: str) -> str:
    """*text* without lines of `inaccfs.cli.progress`.

    A command prints one after half a minute, on a busy machine also a short command.
    """
    return re.sub(r"^inaccfs: .*, \d+ s\n", "", text, flags=re.MULTILINE)


@contextmanager
def background(path: Path, scratch: Path, *arguments: str) -> Iterator[int]:
    """A mount made by `inaccfs mount`, as users do; gives the daemon's pid.

    The user of it must end the daemon; otherwise the test fails.
    """
    log = scratch / "background.log"
    control = scratch / "background.sock"
    cli("mount", "--control", control, "--log", log, *arguments, path)
    pid = status_of(path).pid
    daemon = os.pidfd_open(pid)
    try:
        yield pid
        assert wait_readable(daemon), "the daemon is still there"
        assert not is_mounted(path)
        assert_clean(log_text(log))
    finally:
        give_up(path, daemon)


def log_text(log: Path) -> str:
    """The log of a daemon that has ended; the daemon removes an empty one."""
    return log.read_text(errors="replace") if log.exists() else ""


def give_up(path: Path, daemon: int) -> None:
    """Leave nothing; *daemon* is a pidfd and is closed."""
    with suppress(ProcessLookupError):
        import signal

        signal.pidfd_send_signal(daemon, signal.SIGKILL)
    wait_readable(daemon)
    os.close(daemon)
    while is_mounted(path):
        subprocess.run(["umount", "-l", path], check=True)


def wait_readable(fd: int, seconds: float = PATIENCE) -> bool:
    """Wait for a pipe's data or end, or for the end of a pidfd's process."""
    readable, _, _ = select.select([fd], [], [], seconds)
    return bool(readable)


def wait_for_exit(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        daemon = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert wait_readable(daemon), f"process {pid} is still there"
    finally:
        os.close(daemon)


def ask_until(question: Callable[[], bool]) -> None:
    """Call *question* until it is true; its requests wake the daemon."""
    deadline = time.monotonic() + PATIENCE
    while not question():
        assert time.monotonic() < deadline, "the answer stayed no"


def wait_until_unused(path: Path) -> None:
    """Wait until no memory of a mount is in use.

    The kernel sends RELEASE and FORGET after close(2) and unlink(2) have returned, and
    a request that is made later may overtake them: see fuse_dev_do_read() in
    fs/fuse/dev.c.
    """
    ask_until(lambda: used(path) == 0)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    found = []
    with suppress(FileNotFoundError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        for child in map(int, text.split()):
            found += [child, *children_of(child)]
    return found


def open_fds(pid: int) -> int:
    """How many fds a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


# --- files --------------------------------------------------------------------


def state(pid: int) -> str:
    """The letter of a process's state: R, S, D, T, Z. See proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def outcome(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """ "ok", or the name of the errno that a call fails with."""
    try:
        call(*args, **kwargs)
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, str(exc))
        # This errno has two names, and the man pages use the other one.
        return "EOPNOTSUPP" if name == "ENOTSUP" else name
    return "ok"


@contextmanager
def opened(
    path: Path | str, flags: int = os.O_RDWR, mode: int = 0o600
) -> Iterator[int]:
    """An fd for the length of a with block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def new_file(path: Path, size: int = 0) -> Path:
    """Make a file of *size* bytes, with nothing allocated."""
    path.touch(exist_ok=False)
    if size:
        os.truncate(path, size)
    return path


def allocated(path: Path | str | int) -> int:
    """The bytes that are allocated to a file."""
    return os.stat(path).st_blocks * 512


def used(path: Path) -> int:
    """The bytes of a file system that are in use."""
    found = os.statvfs(path)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@contextmanager
def tmpfs(path: Path, options: str = "size=64m,mode=0700") -> Iterator[Path]:
    """A new tmpfs at *path*, a new directory."""
    path.mkdir()
    run("mount", "-t", "tmpfs", "-o", options, "inaccfs-test", path)
    try:
        yield path
    finally:
        run("umount", "-l", path, status=None)
