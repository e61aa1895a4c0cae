"""Signals that end a command: it removes what it has made, and then ends.

SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does. So the command ends its
mounts and its children and waits for them; with the default action they would end some
time after it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import TYPE_CHECKING, Final

from inaccfs.deferring import Deferred

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType, ModuleType

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)

# The process that `take` was called in, and the signal of _ENDING that it has got.
_process = 0
_taken: int | None = None


def take() -> None:
    """From now on signals end the command in order, and never during an import."""
    global _process
    _process = os.getpid()
    sys.meta_path.insert(0, _Finder())
    for number in _ENDING:
        # nohup(1) ignores SIGHUP.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    global _taken
    # For the second signal, which ends the process at once.
    signal.signal(number, signal.SIG_DFL)
    if os.getpid() != _process:
        # A fork, of a script for example, has nothing to remove.
        signal.raise_signal(number)
    _taken = number
    raise KeyboardInterrupt


def finish() -> None:
    """End the process by the signal that has ended the command, if one has."""
    if _taken is not None:
        signal.signal(_taken, signal.SIG_DFL)
        signal.raise_signal(_taken)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first such signal sets; the second one ends the command."""
    event = threading.Event()
    # They may be ignored, or have other handlers.
    before = {
        number: handler
        for number in (signal.SIGINT, *_ENDING)
        if (handler := signal.getsignal(number)) in (signal.default_int_handler, _end)
    }

    def first(number: int, _frame: FrameType | None) -> None:
        global _taken
        if number != signal.SIGINT:
            _taken = number
        event.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, first)
    try:
        yield event
    finally:
        restore()


# --- imports --------------------------------------------------------------------------


class _Finder(MetaPathFinder):
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
