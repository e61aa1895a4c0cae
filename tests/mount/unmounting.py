"""What the tests of unmounting have in common: stopped daemons, and bind mounts."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.mount.support import (
    cli,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs import Mount


def umount(*words: str | Path) -> str:
    """The one line that `inaccfs umount` prints, with status 0."""
    result = cli("umount", *words)
    assert result.stdout == ""
    assert result.stderr.startswith("inaccfs: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """The daemon is stopped for as long as the block lasts."""
    mount.process.send_signal(signal.SIGSTOP)
    try:
        # It is stopped when /proc says so, not when the signal is sent.
        os.waitid(os.P_PID, mount.pid, os.WSTOPPED | os.WNOWAIT)
        yield
    finally:
        mount.process.send_signal(signal.SIGCONT)


@contextmanager
def bound(source: Path, place: Path) -> Iterator[Path]:
    """A bind mount of *source* at *place*."""
    place.mkdir()
    run("mount", "--bind", source, place)
    try:
        yield place
    finally:
        run("umount", "-l", place, status=None)
