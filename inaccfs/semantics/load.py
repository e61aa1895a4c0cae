"""Find the class for the argument of `--semantics`: a version, or a user's file.

`checking` checks the rules of a user's class. So mistakes are reported before there is
a mount, and not by the first punch.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from inaccfs.errors import OptionError
from inaccfs.semantics import checking
from inaccfs.semantics.catalogue import VERSIONS
from inaccfs.semantics.rules import Semantics
from inaccfs.words import choices, quoted


def split(wanted: str) -> tuple[str, str] | None:
    """The two parts of FILE.py:CLASS; None if *wanted* has another form."""
    path, _, name = wanted.rpartition(":")
    return (path, name) if path.endswith(".py") else None


def absolute(wanted: str) -> str:
    """*wanted* with an absolute path, for a process with another working directory."""
    if (parts := split(wanted)) is None:
        return wanted
    path, name = parts
    return f"{os.path.abspath(path)}:{name}"


def check_name(wanted: str) -> None:
    """Check *wanted* as far as that is possible without running a file.

    Raises:
        OptionError: it is neither the name of a version nor that of a file.
    """
    names = [version.name for version in VERSIONS]
    if wanted in names or wanted.endswith(".py") or split(wanted) is not None:
        return
    which = choices(wanted, names, ", and your own as FILE.py:CLASS")
    raise OptionError(f"unknown semantics {quoted(wanted)}: {which}")


def load(wanted: str) -> Semantics:
    """The semantics of a name, or of FILE.py:CLASS; this runs the file.

    Raises:
        OptionError: there are no semantics of that name, or a rule is wrong.
    """
    check_name(wanted)
    for version in VERSIONS:
        if version.name == wanted:
            return version()
    path, name = split(wanted) or (wanted, None)
    # Reading the class may run the user's code: of a module, a class, a metaclass, a
    # descriptor or an exception. Everything that it raises is handled here. That
    # includes KeyboardInterrupt, so that Ctrl-C shows the line of an endless loop.
    # os._exit() and its like cannot be caught.
    try:
        return checking.checked(_find(_module(path), path, name), path)
    except OptionError:
        raise
    except BaseException as exc:
        reason = f"{line(exc, path)}{checking.in_a_line(exc)}"
        raise OptionError(f"semantics {wanted}: {reason}") from exc


def _module(path: str) -> ModuleType:
    """Run the file. This leaves no __pycache__ beside it."""
    module, source = read_module("semantics", path)
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except BaseException as exc:
        reason = f"{line(exc, path)}{checking.in_a_line(exc)}"
        raise OptionError(f"semantics {path}: {reason}") from exc
    return module


def read_module(kind: str, path: str) -> tuple[ModuleType, bytes]:
    """A new module for the file at *path*, which has not run, and the file's source.

    *kind* says in messages what the file is for.

    Raises:
        OptionError: the file cannot be read, or is not a regular file.
    """
    file = Path(path)
    try:
        # Reading a FIFO would wait for a writer.
        if not file.is_file():
            there = file.exists()
            raise FileNotFoundError("not a regular file" if there else "no such file")
        source = file.read_bytes()
    except OSError as exc:
        raise OptionError(f"{kind} {path}: {exc.strerror or exc}") from exc
    module = ModuleType(f"inaccfs_{kind}_{file.stem}")
    module.__file__ = path
    # Dataclasses, for one, look up the module of a class.
    sys.modules[module.__name__] = module
    return module, source


def line(exc: BaseException, path: str) -> str:
    """The line at which the file raised, for a message; empty if that is not known."""
    lines = [
        at.lineno
        for at in traceback.extract_tb(exc.__traceback__)
        if at.filename == path
    ]
    if isinstance(exc, SyntaxError) and exc.filename == path:
        lines = [exc.lineno]
    return f"line {lines[-1]}: " if lines and lines[-1] else ""


def _classes(module: ModuleType) -> list[str]:
    """The names of the semantics that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Semantics)
        and value.__module__ == module.__name__
    ]


def _find(module: ModuleType, path: str, name: str | None) -> type[Semantics]:
    if name is None:
        there_is = (_classes(module) or ["CLASS"])[0]
        raise OptionError(f"semantics {path}: name the class, too: {path}:{there_is}")
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, Semantics):
        return found
    if found is not None:
        raise OptionError(
            f"semantics {path}:{name} is not derived from inaccfs.semantics.Semantics, "
            "nor from a version such as inaccfs.semantics.V8"
        )
    there = ", ".join(_classes(module))
    raise OptionError(
        f"semantics {path} has no class {name!r}"
        + (f": there is {there}" if there else "")
    )
