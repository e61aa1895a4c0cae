"""Child processes: forks that lose no signal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import inaccfs

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


@pytest.mark.parametrize("hook", ["before", "after_in_parent"])
def test_an_interrupt_during_a_fork_is_raised_after_it(hook: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORKED, hook],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": TOP},
    )
    assert (ran.stdout, ran.stderr) == ("interrupted\n", "")
