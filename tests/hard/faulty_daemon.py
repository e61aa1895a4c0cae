"""inaccfs with a seam: a test decides which system calls fail.

`python -m tests.hard.faulty_daemon mount --foreground ...`, with the path of the seam
in the environment. Only calls that inaccfs itself makes pass through the seam, and
those that `_is_ours` adds, but no others of trio or the interpreter.
"""

from __future__ import annotations

import importlib
import io
import os
import select
import sys
from functools import wraps
from typing import Any, Final

from tests.hard.seam import NAMES, Seam

_EPOLL: Final = select.epoll

VARIABLE: Final = "INACCFS_HARD_SEAM"


def _is_ours(name: str) -> bool:
    """Whether inaccfs has made the call, or a worker thread of trio for it."""
    caller = str(sys._getframe(2).f_globals.get("__name__", ""))
    if name in ("threading.Thread.start", "select.epoll.register"):
        return caller.startswith(("trio.", "inaccfs."))
    # Calls of trio do not count, except in functions that its threads run for inaccfs.
    return caller.startswith(("inaccfs.", "trio._threads", "outcome."))


def _wrapped(seam: Seam, which: int, function: Any) -> Any:
    name = NAMES[which]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _is_ours(name):
            return function(*args, **kwargs)
        if name == "os.close":
            # close(2) closes the fd even if it fails.
            result = function(*args, **kwargs)
            seam.pass_through(which)
            return result
        try:
            seam.pass_through(which)
        except OSError as exc:
            if name == "threading.Thread.start":
                # Python raises this for EAGAIN.
                raise RuntimeError("can't start new thread") from exc
            raise
        return function(*args, **kwargs)

    return call


class Epoll:
    """A `select.epoll` whose methods can be replaced."""

    def __init__(self) -> None:
        self._epoll = _EPOLL()
        self.fileno = self._epoll.fileno
        self.modify = self._epoll.modify
        self.unregister = self._epoll.unregister
        self.poll = self._epoll.poll
        self.close = self._epoll.close

    def register(self, *arguments: Any) -> None:
        self._epoll.register(*arguments)


def install(seam: Seam) -> None:
    """Put the seam into every call, also where a module has imported it by name.

    A module that is imported later imports the call with the seam.
    """
    # Methods of a built-in class cannot be replaced, those of a subclass can.
    setattr(io, "FileIO", type("FileIO", (io.FileIO,), {}))  # noqa: B010
    # This class cannot have subclasses.
    setattr(select, "epoll", Epoll)  # noqa: B010
    replaced = {}
    for which, name in enumerate(NAMES):
        owner_name, _, attribute = name.rpartition(".")
        try:
            owner: Any = importlib.import_module(owner_name)
        except ModuleNotFoundError:
            module_name, _, class_name = owner_name.rpartition(".")
            owner = getattr(importlib.import_module(module_name), class_name)
        original = getattr(owner, attribute)
        wrapper = _wrapped(seam, which, original)
        setattr(owner, attribute, wrapper)
        replaced[id(original)] = wrapper
    for loaded in list(sys.modules.values()):
        if loaded.__name__.startswith("inaccfs."):
            for key, value in list(vars(loaded).items()):
                if id(value) in replaced:
                    setattr(loaded, key, replaced[id(value)])


if __name__ == "__main__":
    install(Seam(os.environ[VARIABLE]))
    from inaccfs.cli import main

    sys.exit(main(sys.argv[1:]))
