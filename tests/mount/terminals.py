"""Real terminals for commands that draw: tmux, with a separate server for the test."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.mount.support import ENVIRONMENT, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_tmux = pytest.mark.skipif(
    shutil.which("tmux") is None, reason="needs tmux (Debian: tmux)"
)


class Terminal:
    """A terminal in which a command runs."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def tmux(self, *words: str) -> str:
        """Run a command of tmux."""
        return subprocess.run(
            ["tmux", "-u", "-S", str(self._socket), *words],
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def screen(self, *, colours: bool = False) -> list[str]:
        """The lines of the screen without empty ones at the end."""
        text = self.tmux("capture-pane", "-p", *(["-e"] if colours else []))
        return text.rstrip("\n").split("\n")

    def type(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        self.tmux("send-keys", *keys)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, as a user changes a window."""
        self.tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def wait(self, wanted: Callable[[list[str]], object]) -> list[str]:
        """Wait until the screen is as *wanted*; return it."""
        deadline = time.monotonic() + PATIENCE
        while not wanted(found := self.screen()):
            assert time.monotonic() < deadline, "\n".join(found)
            # The command needs time to draw.
            time.sleep(0.02)
        return found


@contextmanager
def terminal(
    tmp_path: Path, *command: str, columns: int, lines: int, **environment: str
) -> Iterator[Terminal]:
    """A terminal with *command*, and "ended N" with its status after it."""
    made = Terminal(tmp_path / "tmux")
    # pytest's readline sets them to the size of pytest's terminal.
    words = ["-u", "COLUMNS", "-u", "LINES"]
    words += [f"{name}={value}" for name, value in environment.items()]
    line = shlex.join(["env", *words, *command])
    subprocess.run(
        [
            *("tmux", "-u", "-f", os.devnull, "-S", str(tmp_path / "tmux")),
            *("new-session", "-d", "-x", str(columns), "-y", str(lines)),
            # A shell ends with a child that Ctrl-C has ended, unless it has a trap.
            f"trap : INT; {line}; echo ended $?; exec cat",
        ],
        check=True,
        env={**ENVIRONMENT, "SHELL": "/bin/sh"},
    )
    try:
        yield made
    finally:
        made.tmux("kill-server")
