"""Signals that end a command: it undoes what it has made, and then ends.

SIGTERM and SIGHUP do what Ctrl-C does: they raise KeyboardInterrupt. So the command
ends its mounts and its children and waits for them; with the default action they would
end some time after it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import TYPE_CHECKING, Final

from inaccfs.deferring import Deferred

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType, ModuleType

ENDING: Final = (signal.SIGTERM, signal.SIGHUP)

# timeout(1) sends SIGTERM to its child, and then to the child's process group; systemd
# sends SIGHUP right after SIGTERM to a login session. They want one end.
_SAME_SECONDS: Final = 0.2

# The process that `take` was called in, until `finish`.
_process = 0
# The signal of ENDING that the process has got.
_taken: int | None = None
# When the last signal came that was not a repetition, in seconds of time.monotonic().
_came = float("-inf")


def take() -> None:
    """From now on signals end the command in order, and never during an import."""
    global _process
    _process = os.getpid()
    # In its place, and not before the finders of others.
    place = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else 0
    sys.meta_path.insert(place, _Finder())
    for number in ENDING:
        # nohup(1) ignores SIGHUP.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def end(number: int, frame: FrameType | None) -> None:
    """The handler of ENDING. The second signal ends the process at once."""
    again = _taken is not None
    # A fork, of a script for example, has nothing to undo.
    ours = os.getpid() == _process
    if ours and repeats():
        return
    if again or not ours:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    note(number)
    interrupt = signal.getsignal(signal.SIGINT)
    if callable(interrupt):
        # A script may have set it, or an event loop: trio's raises KeyboardInterrupt
        # only where that does not break the loop.
        interrupt(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt


def repeats() -> bool:
    """Whether the signal, of which this is the handler, came right after another one.

    Call it once in a handler. While it runs the handler of another signal may run.
    """
    global _came
    now = time.monotonic()
    if now - _came < _SAME_SECONDS:
        return True
    _came = now
    return False


def note(number: int) -> None:
    """Let `finish` end the process by this signal, if it is one of ENDING."""
    global _taken
    if number in ENDING:
        _taken = number


def finish() -> None:
    """End the process by the signal that has ended the command, if one has.

    Else the signals have their default action again: as the interpreter ends, nothing
    can handle an exception.
    """
    global _process
    # If one comes before its turn, `end` ends the process at once.
    _process = 0
    for number in ENDING:
        if signal.getsignal(number) is end:
            signal.signal(number, signal.SIG_DFL)
    if _taken is not None:
        signal.signal(_taken, signal.SIG_DFL)
        signal.raise_signal(_taken)


# --- imports --------------------------------------------------------------------------


class _Finder:
    """Finds the modules of this package, and what they import, as Python does."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        # While a module is executed, what it imports needs no loader of its own.
        if _Loader.busy or not fullname.startswith("inaccfs."):
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is not None and type(found.loader) is SourceFileLoader:
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found


class _Loader(SourceFileLoader):
    """Defers signals while a module is executed, and all that it imports."""

    busy = False

    def exec_module(self, module: ModuleType) -> None:
        # `busy` is a flag of the main thread: signal handlers run in no other.
        if _Loader.busy or threading.current_thread() is not threading.main_thread():
            super().exec_module(module)
            return
        with Deferred():
            _Loader.busy = True
            try:
                super().exec_module(module)
            finally:
                _Loader.busy = False
