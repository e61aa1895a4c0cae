"""Every hard test has its own ground, on which it must leave nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.hard.census import Ground
from tests.mount import support

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ground(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """A directory for temporary files, and a mark for processes; empty at the end."""
    if os.geteuid() != 0:
        pytest.skip("counting the fds of an undumpable daemon needs root")
    if reason := support.why_no_fuse():
        pytest.skip(reason)
    path = Path(tempfile.mkdtemp(prefix="inaccfs-hard-"))
    # Other users need access, too; the test decides what each may enter.
    path.chmod(0o755)
    for environment in (os.environ, support.ENVIRONMENT):
        monkeypatch.setitem(environment, Ground.MARK, str(path))
        monkeypatch.setitem(environment, "TMPDIR", str(path))
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    made = Ground(path)
    try:
        yield made
        made.assert_bare()
    finally:
        _clear(made)


def _clear(ground: Ground) -> None:
    """Leftovers of a failed test must not disturb other tests."""
    for pid, _ in ground.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while (
        subprocess.run(
            ["umount", "-l", ground.path / "mnt"], capture_output=True, check=False
        ).returncode
        == 0
    ):
        pass
    left = ground.left().get("mounts", [])
    assert isinstance(left, list)
    for point in left:
        subprocess.run(["umount", "-l", point], check=False)
    shutil.rmtree(ground.path)


@pytest.fixture
def point(ground: Ground) -> Iterator[Path]:
    """A directory to mount on; after the test nothing is mounted there."""
    path = ground.path / "mnt"
    path.mkdir()
    yield path
    path.rmdir()
