"""`inaccfs top` on real terminals and mounts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, fallocate
from tests.mount import support
from tests.mount.support import (
    PAGE,
    complaint,
    doomed,
    inaccfs_command,
    new_file,
    opened,
)
from tests.mount.terminals import needs_tmux, terminal

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs import Mount

pytestmark = [pytest.mark.fuse, pytest.mark.semantics("v10")]


@needs_tmux
@pytest.mark.parametrize(
    ("columns", "lines", "locale"), [(80, 24, "C.UTF-8"), (200, 60, "C")]
)
def test_it_shows_what_happens_and_follows_the_terminal(
    mount: Mount, scratch: Path, columns: int, lines: int, locale: str
) -> None:
    command = inaccfs_command("top", mount.path)
    path = new_file(mount.path / "guest", 4 * PAGE)
    with terminal(
        scratch,
        *command,
        columns=columns,
        lines=lines,
        LC_ALL=locale,
        COLUMNS=str(columns),
        LINES=str(lines),
    ) as made:
        made.wait(lambda screen: "inaccfs top" in screen[0])
        with inaccfs.connect(mount.path) as shim, opened(path) as fd:
            for _ in range(50):
                fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, PAGE)
            with suppress(OSError):
                os.read(fd, 8)
            shim.file("/guest").get_pfns(0, 3)
            seen = made.wait(
                lambda screen: (
                    any(line.startswith("allocate") for line in screen)
                    and any("EINVAL" in line for line in screen)
                    and "fetched 3 pages" in screen[2]
                )
            )
        assert len(seen) <= lines
        (refused,) = [line for line in seen if "EINVAL" in line]
        assert f" {os.getpid()} " in refused
        assert "read" in refused
        assert "/guest" in refused
        made.resize(60, 20)
        made.wait(lambda screen: max(map(len, screen)) <= 60 and len(screen) <= 20)
        made.type("q")
        made.wait(lambda screen: screen[-1] == "ended 0")


@needs_tmux
def test_whom_an_invalidation_waits_for_is_shown(mount: Mount, scratch: Path) -> None:
    command = inaccfs_command("top", mount.path)
    path = new_file(mount.path / "guest", 4 * PAGE)
    with terminal(scratch, *command, columns=100, lines=30) as made:
        made.wait(lambda screen: "inaccfs top" in screen[0])

        def look(_start: int, _end: int) -> None:
            seen = made.wait(lambda screen: any("waits for" in line for line in screen))
            assert any(
                line.startswith("/guest") and f" {os.getpid()} " in line
                for line in seen
            )

        with (
            inaccfs.connect(mount.path) as shim,
            shim.file("/guest") as memory,
            memory.register_notifier(invalidate_start=look, invalidate_end=None),
        ):
            punch = ["fallocate", "-p", "-o", "0", "-l", str(PAGE), str(path)]
            subprocess.run(punch, check=True)
        made.type("C-c")
        made.wait(lambda screen: screen[-1] == "ended 0")


@needs_tmux
def test_a_daemon_that_has_stopped_does_not_stop_it(
    mount: Mount, scratch: Path
) -> None:
    program = support.program(
        "from inaccfs.cli import topview; topview._SILENT_SECONDS = 0.5"
    )
    command = [sys.executable, "-c", program, "top", str(mount.path)]
    with terminal(scratch, *command, columns=80, lines=24) as made:
        made.wait(lambda screen: "inaccfs top" in screen[0])
        os.kill(mount.pid, signal.SIGSTOP)
        try:
            made.wait(lambda screen: "no answer for" in screen[0])
            made.type("q")
            made.wait(lambda screen: screen[-1] == "ended 0")
        finally:
            os.kill(mount.pid, signal.SIGCONT)


@needs_tmux
def test_a_daemon_that_is_killed_is_one_line(scratch: Path) -> None:
    with doomed() as mount:
        command = inaccfs_command("top", mount.path)
        with terminal(scratch, *command, columns=80, lines=24) as made:
            made.wait(lambda screen: "inaccfs top" in screen[0])
            mount.process.kill()
            seen = made.wait(lambda screen: screen[-1] == "ended 1")
            assert "hung up" in "".join(seen)
            mount.process.wait()


def test_without_a_terminal_it_says_what_does_not_need_one(mount: Mount) -> None:
    assert "inaccfs metrics" in complaint("top", mount.path)


@needs_tmux
def test_what_is_no_mount_is_one_line(scratch: Path) -> None:
    command = inaccfs_command("top", scratch)
    with terminal(scratch, *command, columns=200, lines=24) as made:
        seen = made.wait(lambda screen: screen[-1] == "ended 1")
        assert "neither an inaccfs mount nor a control socket" in seen[0]
