"""Child processes that end before their parent does."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import Any, Final

# What a child may take to take down what it has made.
_ENDING_SECONDS: Final = 1.5


def end(process: subprocess.Popen[Any]) -> None:
    """End a child by SIGTERM, or else by SIGKILL, and wait for it.

    In an exception handler: Popen itself does not wait after a KeyboardInterrupt.
    """
    process.terminate()
    try:
        process.wait(_ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    """Kill a child and wait for it, but not for one that hangs in the kernel."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_ENDING_SECONDS)
