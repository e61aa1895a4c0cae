"""Runs a subcommand; the only place that handles errors."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

from inaccfs._version import __version__
from inaccfs.cli import fstab, output
from inaccfs.cli.statuses import INTERRUPTED, USAGE
from inaccfs.errors import (
    SHORT_OF_MEMORY,
    InaccfsError,
    NoThreadError,
    OptionError,
    lacking,
    means_no_thread,
)
from inaccfs.words import nearest, quoted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

_COMMANDS: Final = (
    *("mount", "umount", "status", "top", "map", "trace", "metrics", "semantics"),
    *("qmp", "kvm", "probe", "experiment", "compare", "explore"),
    *("doctor", "report", "setup-system"),
)
"""Each is a module of this package."""

_GENERAL: Final = ("-h", "--help", "--version")


def run(argv: Sequence[str] | None) -> int:
    """Run one command; return the exit status.

    Errors that the user can correct are caught here and printed in one line. The status
    is 2 for wrong arguments, and for a command that failed its parser's default of
    `failed`, or 1. Any other exception is a bug and keeps its traceback.
    """
    output.prepare()
    try:
        found = _run(argv)
    except SystemExit as exc:
        # argparse has printed help, or an error.
        raise SystemExit(output.finish(int(exc.code or 0))) from None
    return output.finish(found)


def _run(argv: Sequence[str] | None) -> int:
    failed = 1
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        words = fstab.translated(words) or words
        known = parser(words)
        if "_ARGCOMPLETE" in os.environ:
            from inaccfs.cli import completing

            completing.answer(known)
        args = _parsed(known, words)
        failed = getattr(args, "failed", failed)
        # The words after the command; `mount` passes them to a daemon.
        args.given = words[words.index(args.command) + 1 :]
        return int(args.run(args))
    except OptionError as exc:
        output.complain(str(exc))
        return USAGE
    except InaccfsError as exc:
        output.complain(str(exc))
    except output.OutputError as exc:
        output.complain_of_output(exc)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as exc:
        if (reason := lacking(exc)) is not None:
            output.complain(reason)
        elif _has_working_directory():
            raise
        else:
            output.complain("the working directory has been removed: change to another")
    except RuntimeError as exc:
        if not means_no_thread(exc):
            raise
        output.complain(str(NoThreadError()))
    except MemoryError:
        output.complain(SHORT_OF_MEMORY)
    return failed


def _parsed(known: output.Parser, words: list[str]) -> argparse.Namespace:
    args, unknown = known.parse_known_args(words)
    if not unknown:
        return args
    # parse_args() would show the usage of inaccfs, and not of the command.
    prog = args.parser.prog if "parser" in args else f"inaccfs {args.command}"
    kind = "option" if unknown[0].startswith("-") else "operand"
    raise OptionError(f"unknown {kind} {quoted(unknown[0])}: see {prog} -h")


def parser(words: Sequence[str] = ()) -> output.Parser:
    """The parser of all words, or of the command that *words* begin with."""
    found = output.Parser(
        prog="inaccfs",
        description="memory that userspace can size, allocate and punch, but never "
        "read, write or map",
    )
    found.add_argument("--version", action="version", version=f"inaccfs {__version__}")
    commands = found.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if words and words[0] not in _COMMANDS and not words[0].startswith("-"):
        near = nearest(words[0], _COMMANDS)
        hint = f"did you mean {near}? " if near else ""
        raise OptionError(
            f"no command {quoted(words[0])}: {hint}inaccfs -h lists them all"
        )
    if words and words[0].startswith("-") and words[0] not in _GENERAL:
        _refuse_misplaced(words)
    # Making the other parsers would take a tenth of a daemon's start time.
    named = words[:1] if words and words[0] in _COMMANDS else _COMMANDS
    for name in named:
        module = import_module(f"inaccfs.cli.{name.replace('-', '_')}")
        module.add_parser(commands)
    return found


def _refuse_misplaced(words: Sequence[str]) -> None:
    """Refuse options before the command: each belongs to a command."""
    for at, word in enumerate(words):
        if word in _COMMANDS:
            options = " ".join(words[:at])
            raise OptionError(
                f"options go after the command: inaccfs {word} {options} ..."
            )


def _has_working_directory() -> bool:
    """Whether relative paths can be resolved."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
