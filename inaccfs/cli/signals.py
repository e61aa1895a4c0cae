"""Signals that end a command: it undoes what it has made, and then ends.

SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does. So the command ends its
mounts and its children and waits for them; with the default action they would end some
time after it.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import TYPE_CHECKING, Final

from inaccfs.deferring import Deferred

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType, ModuleType

ENDING: Final = (signal.SIGTERM, signal.SIGHUP)

# The process that `take` was called in, and the signal of ENDING that it has got.
_process = 0
_taken: int | None = None


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


def end(number: int, _frame: FrameType | None) -> None:
    """The handler of ENDING."""
    # For the second signal, which ends the process at once.
    signal.signal(number, signal.SIG_DFL)
    if os.getpid() != _process:
        # A fork, of a script for example, has nothing to undo.
        signal.raise_signal(number)
    note(number)
    raise KeyboardInterrupt


def note(number: int) -> None:
    """Let `finish` end the process by this signal, if it is one of ENDING."""
    global _taken
    if number in ENDING:
        _taken = number


def finish() -> None:
    """End the process by the signal that has ended the command, if one has."""
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
        if not fullname.startswith("inaccfs."):
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is not None and type(found.loader) is SourceFileLoader:
            found.loader = _Loader(found.loader.name, found.loader.path)
        return found


class _Loader(SourceFileLoader):
    """Defers signals while a module is executed, and all that it imports."""

    _busy = False

    def exec_module(self, module: ModuleType) -> None:
        if _Loader._busy:
            super().exec_module(module)
            return
        with Deferred():
            _Loader._busy = True
            try:
                super().exec_module(module)
            finally:
                _Loader._busy = False
