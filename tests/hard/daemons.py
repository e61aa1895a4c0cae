"""Daemons that a test stops, kills and makes fail, and the processes that use them."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from tests.hard import faulty_daemon
from tests.mount import support
from tests.mount.support import ENVIRONMENT, PATIENCE, TOP, is_mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.hard.census import Ground
    from tests.hard.seam import Seam


@dataclass(frozen=True)
class Daemon:
    """A daemon in the foreground, which is a child of the test."""

    process: subprocess.Popen[bytes]
    path: Path
    control: Path
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL; it must end completely, whatever its threads do."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self) -> None:
        """SIGSTOP, and wait until it has stopped."""
        self.process.send_signal(signal.SIGSTOP)
        support.ask_until(lambda: support.state(self.pid) == "T")

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def environment(seam_path: Path | None) -> dict[str, str]:
    """The environment of a process, with the seam if there is one."""
    if seam_path is None:
        return dict(ENVIRONMENT)
    return {**ENVIRONMENT, faulty_daemon.VARIABLE: str(seam_path)}


def command(
    seam_path: Path | None, *words: str | Path, module: str = "inaccfs"
) -> list[str]:
    """The command line of inaccfs, with the seam where there is one."""
    if seam_path is not None:
        module = "tests.hard.faulty_daemon"
    return [sys.executable, "-m", module, *map(str, words)]


@contextmanager
def started(
    ground: Ground,
    point: Path,
    *options: str,
    seam_path: Path | None = None,
    module: str = "inaccfs",
) -> Iterator[tuple[Daemon, socket.socket]]:
    """A daemon that starts, and the socket that shows when it is ready.

    At the end `inaccfs umount` unmounts it, and must clean up even if it was killed.
    """
    control, log = ground.path / "control", ground.path / "log"
    notify_path = ground.path / "notify"
    with ExitStack() as stack:
        notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify.bind(str(notify_path))
        notify.settimeout(PATIENCE)
        stderr = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [
                *command(seam_path, "mount", "--foreground", module=module),
                *("--control", str(control)),
                *options,
                str(point),
            ],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            cwd=TOP,
            env={**environment(seam_path), "NOTIFY_SOCKET": str(notify_path)},
        )
        daemon = Daemon(process, point, control, log)
        try:
            yield daemon, notify
            _end(daemon)
        finally:
            process.kill()
            process.wait(PATIENCE)
            while is_mounted(point):
                subprocess.run(["umount", "-l", point], check=True)
            for path in (control, log, notify_path):
                path.unlink(missing_ok=True)


def _end(daemon: Daemon) -> None:
    deadline = time.monotonic() + PATIENCE
    while is_mounted(daemon.path):
        ran = support.run_here("umount", daemon.path)
        # A process that looks at all mounts, as `inaccfs status` does, makes one busy.
        retry = "is busy" in ran.stderr and time.monotonic() < deadline
        assert ran.returncode == 0 or retry, ran
    assert not is_mounted(daemon.path)
    # Only the test may kill it.
    assert daemon.process.wait(PATIENCE) in (0, -signal.SIGKILL)


@contextmanager
def running(
    ground: Ground,
    point: Path,
    *options: str,
    seam_path: Path | None = None,
    module: str = "inaccfs",
) -> Iterator[Daemon]:
    """A daemon that is ready. It must end well, or be killed by the test."""
    with started(ground, point, *options, seam_path=seam_path, module=module) as (
        daemon,
        notify,
    ):
        wait_until_ready(daemon, notify)
        ground.remember(point)
        yield daemon


def wait_until_ready(daemon: Daemon, notify: socket.socket) -> None:
    """Wait for a service manager's READY=1; fail with its log if it ends instead."""
    ended = os.pidfd_open(daemon.pid)
    try:
        readable, _, _ = select.select([notify.fileno(), ended], [], [], PATIENCE)
    finally:
        os.close(ended)
    assert notify.fileno() in readable, daemon.log.read_text(errors="replace")
    assert b"READY=1" in notify.recv(4096)


class Actor:
    """A process that makes calls for a test: see actor.py."""

    def __init__(self, *words: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-m", "tests.hard.actor", *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=TOP,
            env=ENVIRONMENT,
        )
        self._heard = b""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin: IO[bytes] = self.process.stdin
        self._stdout: IO[bytes] = self.process.stdout

    def say(self, line: str) -> None:
        self._stdin.write(f"{line}\n".encode())
        self._stdin.flush()

    def has_spoken(self) -> bool:
        """Whether a line can be read, or the actor has ended."""
        return support.wait_readable(self._stdout.fileno(), 0)

    def hear(self, seconds: float = PATIENCE) -> str:
        """Its next line; "" at its end. It is a failure if none comes."""
        while b"\n" not in self._heard:
            assert support.wait_readable(self._stdout.fileno(), seconds), "it hangs"
            if not (data := os.read(self._stdout.fileno(), 1 << 16)):
                break
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def close(self) -> None:
        """Let it end, by the end of its input."""
        with suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            self.process.wait(PATIENCE)
            self._stdout.close()


@contextmanager
def actor(*words: str | Path) -> Iterator[Actor]:
    """An actor during a with block."""
    made = Actor(*words)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def with_seam(ground: Ground) -> Iterator[tuple[Seam, Path]]:
    """A new seam, disarmed, and its path."""
    from tests.hard.seam import Seam

    path = ground.path / "seam"
    seam = Seam(path, create=True)
    try:
        yield seam, path
    finally:
        seam.disarm()
        seam.close()
        path.unlink()
