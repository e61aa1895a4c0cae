"""Child processes: forks that lose no signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import inaccfs
from inaccfs import children

TOP: Final = str(Path(inaccfs.__file__).resolve().parent.parent)

# SIGINT comes while the hooks of a fork run, in the parent or before it.
FORKED = """
import os, signal, sys
from inaccfs.children import fork

os.register_at_fork(**{sys.argv[1]: lambda: signal.raise_signal(signal.SIGINT)})
try:
    if (pid := fork()) == 0:
        signal.pause()
        os._exit(0)
except KeyboardInterrupt:
    try:
        os.wait()
    except ChildProcessError:
        print("interrupted")
"""


class Recorded(subprocess.Popen[bytes]):
    """A child that records its signals, and how long its end was waited for."""

    def __init__(self, code: str) -> None:
        super().__init__([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert self.stdout is not None
        self.stdout.readline()
        self.done: list[object] = []

    def send_signal(self, sig: int) -> None:
        self.done.append(signal.Signals(sig).name)
        super().send_signal(sig)

    def wait(self, timeout: float | None = None) -> int:
        self.done.append(timeout)
        return super().wait(timeout)


WAITING: Final = """
import signal
signal.signal(signal.SIGTERM, signal.{0})
print(flush=True)
signal.pause()
"""


@pytest.mark.parametrize(
    ("action", "done"),
    [
        ("SIG_DFL", ["SIGTERM", "SIGCONT", 30.0]),
        ("SIG_IGN", ["SIGTERM", "SIGCONT", "SIGKILL", children._KILLED_SECONDS]),
    ],
)
def test_a_child_that_ignores_sigterm_is_killed_at_once(
    action: str, done: list[object]
) -> None:
    child = Recorded(WAITING.format(action))
    children.end(child, 30.0)
    assert child.returncode is not None
    assert child.done[: len(done)] == done
    assert child.stdout is not None
    child.stdout.close()


@pytest.mark.parametrize("hook", ["before", "after_in_parent"])
def test_an_interrupt_during_a_fork_is_raised_after_it(hook: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORKED, hook],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": TOP},
    )
    assert (ran.stdout, ran.stderr) == ("interrupted\n", "")
