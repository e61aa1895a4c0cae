"""inaccfs experiment: run one of the experiments in docs/experiments."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

import msgspec

from inaccfs import streams, userfiles
from inaccfs.cli import output
from inaccfs.cli.progress import progress
from inaccfs.errors import InaccfsError, OptionError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from inaccfs.experiments.lab import Experiment, Lab


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "experiment",
        help="run an experiment on the interface, or list them",
        description="Run one of the experiments that docs/experiments/ explains, or "
        "one of yours, on private mounts. Without a name, list them.",
    )
    parser.add_argument("name", metavar="NAME|FILE.py:CLASS", nargs="?")
    parser.add_argument(
        "--semantics",
        action="append",
        default=[],
        metavar="NAME|FILE.py:CLASS",
        help="semantics to run it under, instead of the experiment's own; may be "
        "repeated",
    )
    parser.add_argument(
        "--plot", metavar="FILE.svg", help="file for the chart, if there is one"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the experiment, or list all."""
    from inaccfs.experiments import own
    from inaccfs.experiments.lab import Lab
    from inaccfs.semantics import load

    if args.name is None:
        _list(as_json=args.json)
        return 0
    found = own.find(args.name)
    for name in args.semantics or found.semantics:
        # Check the names before anything is mounted.
        found.check(name, load.load(name))
    if args.plot is not None and not found.draws:
        is_own = userfiles.split(args.name) is not None
        raise OptionError(
            f"experiment {found.name} draws no chart: "
            + ("set `draws` to True if it does" if is_own else "leave out --plot")
        )
    semantics = [userfiles.absolute(name) for name in args.semantics or found.semantics]
    lab = Lab(semantics, _nowhere if args.json else output.say)
    if args.plot is None:
        return _run(found, lab, args)
    with _translated(args.plot):
        # Now, so that it does not fail only after minutes of work.
        fd = streams.create(args.plot)
    try:
        ended = _run(found, lab, args)
        if not ended:
            if not lab.drawn:
                raise InaccfsError(f"experiment {found.name} has drawn no chart")
            with _translated(args.plot), open(fd, "w", closefd=False) as file:
                file.write(lab.drawn)
    finally:
        os.close(fd)
    return ended


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Make an `OSError` in the with block an `InaccfsError` that names the file."""
    try:
        yield
    except OSError as exc:
        raise InaccfsError(f"cannot write {path}: {exc.strerror}") from exc


def _list(*, as_json: bool) -> None:
    from inaccfs.experiments import catalogue

    questions = {name: catalogue.find(name).question for name in catalogue.NAMES}
    if as_json:
        rows = [{"name": name, "question": text} for name, text in questions.items()]
        output.say_json(msgspec.json.encode(rows))
        return
    width = max(map(len, questions))
    for name, question in questions.items():
        output.say(f"{name:<{width}}  {question}")


def _run(found: Experiment, lab: Lab, args: argparse.Namespace) -> int:
    try:
        with (
            output.lent(),
            # Output of the user's code would not be JSON.
            redirect_stdout(sys.stderr) if args.json else nullcontext(),
            progress(f"experiment {found.name}", ticks=True),
        ):
            found.run(lab)
    except (InaccfsError, output.OutputError):
        raise
    except SystemExit as exc:
        return output.exit_status(exc)
    except Exception as exc:
        if userfiles.split(args.name) is None:
            raise
        output.mention_traceback(exc, ours=2)
        return 1
    if args.json:
        report = {
            "name": found.name,
            "question": found.question,
            "semantics": lab.semantics,
            "tables": lab.tables,
            "lines": lab.lines,
        }
        output.say_json(msgspec.json.encode(report))
    return 0


def _nowhere(_line: str) -> None:
    """Show nothing: with --json everything is printed at the end."""
