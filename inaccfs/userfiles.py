"""Python files of the user's, whose classes are named as FILE.py:CLASS."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from inaccfs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

# A user's class could return something else, or raise.
type_name: Final[Callable[[type], str]] = type.__dict__["__name__"].__get__


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


def label(wanted: str) -> str:
    """A short name: of FILE.py:CLASS the class."""
    parts = split(wanted)
    return wanted if parts is None else parts[1]


class UserFile:
    """A file that is run as a separate module.

    Reading the module may run the user's code, too: of a class, a metaclass, a
    descriptor or an exception.
    """

    def __init__(self, kind: str, path: str) -> None:
        """Read the file. *kind* says in messages what it is for.

        Raises:
            OptionError: the file cannot be read, or is not a regular file.
        """
        self.path: Final = path
        self._kind: Final = kind
        file = Path(path)
        try:
            # Reading a FIFO would wait for a writer.
            if not file.is_file():
                there = file.exists()
                raise FileNotFoundError(
                    "not a regular file" if there else "no such file"
                )
            self._source: Final = file.read_bytes()
        except OSError as exc:
            raise OptionError(f"{kind} {path}: {exc.strerror or exc}") from exc
        self.module: Final = ModuleType(f"inaccfs_{kind}_{file.stem}")
        self.module.__file__ = path
        # Dataclasses, for one, look up the module of a class.
        sys.modules[self.module.__name__] = self.module

    def run(self) -> None:
        """Run it. This leaves no __pycache__ beside it."""
        exec(compile(self._source, self.path, "exec"), vars(self.module))

    def classes(self, base: type = object) -> list[str]:
        """The names of the classes derived from *base* that it defines itself."""
        return [
            name
            for name, value in vars(self.module).items()
            if isinstance(value, type)
            and issubclass(value, base)
            and value.__module__ == self.module.__name__
        ]

    def unnamed(self, base: type) -> OptionError:
        """The error for a path without a class."""
        there_is = (self.classes(base) or ["CLASS"])[0]
        return OptionError(
            f"{self._kind} {self.path}: name the class, too: {self.path}:{there_is}"
        )

    def lacks(self, name: str, base: type = object) -> OptionError:
        """The error for a class that the file lacks."""
        there = ", ".join(self.classes(base))
        return OptionError(
            f"{self._kind} {self.path} has no class {name!r}"
            + (f": there is {there}" if there else "")
        )

    def reason(self, exc: BaseException) -> str:
        """For a message: where the file raised, if known, and the exception."""
        lines = [
            at.lineno
            for at in traceback.extract_tb(exc.__traceback__)
            if at.filename == self.path
        ]
        if isinstance(exc, SyntaxError) and exc.filename == self.path:
            lines = [exc.lineno]
        where = f"line {lines[-1]}: " if lines and lines[-1] else ""
        return f"{where}{in_a_line(exc)}"


def in_a_line(exc: BaseException) -> str:
    """An exception's type, and the first line of its text."""
    name = type_name(type(exc))
    try:
        text = exc.msg if isinstance(exc, SyntaxError) else str(exc)
        first = next(iter(text.splitlines()), "")
    except BaseException:
        return name
    return f"{name}: {first}" if first else name
