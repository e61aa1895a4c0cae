"""Child processes: forks that lose no signal, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import inaccfs
from inaccfs import children

if TYPE_CHECKING:
    from collections.abc import Iterator

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


# It ends by SIGCONT, as a daemon that is ending already ignores SIGTERM.
ENDING: Final = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCONT, lambda *_: os._exit(7))
print(flush=True)
while True:
    signal.pause()
"""


@contextmanager
def child(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child that has set up what its signals do."""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE
    ) as started:
        try:
            assert started.stdout is not None
            started.stdout.readline()
            yield started
        finally:
            started.kill()


def test_a_child_that_ends_in_its_own_time_is_not_killed() -> None:
    with child(ENDING) as ending:
        children.end(ending, 30.0)
        assert ending.returncode == 7


def test_whether_a_process_ignores_a_signal() -> None:
    with child(ENDING) as ending:
        assert children.ignores(ending.pid, signal.SIGTERM)
        assert not children.ignores(ending.pid, signal.SIGCONT)
        assert not children.ignores(ending.pid, signal.SIGUSR1)
    assert not children.ignores(ending.pid, signal.SIGTERM)


@pytest.mark.parametrize("hook", ["before", "after_in_parent"])
def test_an_interrupt_during_a_fork_is_raised_after_it(hook: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORKED, hook],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": TOP},
    )
    assert (ran.stdout, ran.stderr) == ("interrupted\n", "")
