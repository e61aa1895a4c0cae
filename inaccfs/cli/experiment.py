"""inaccfs experiment: run one of the experiments in docs/experiments."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

import msgspec

from inaccfs import userfiles
from inaccfs.cli import output
from inaccfs.cli.progress import progress
from inaccfs.errors import InaccfsError

if TYPE_CHECKING:
    import argparse

    from inaccfs.experiments.lab import Experiment


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
    from inaccfs.semantics import load

    if args.name is None:
        _list(as_json=args.json)
        return 0
    found = own.find(args.name)
    for name in args.semantics or found.semantics:
        # Check the names before anything is mounted.
        found.check(name, load.load(name))
    if args.plot is not None:
        # Check this now, and not after minutes of work.
        try:
            open(args.plot, "ab").close()
        except OSError as exc:
            raise InaccfsError(f"cannot write {args.plot}: {exc.strerror}") from exc
    semantics = [userfiles.absolute(name) for name in args.semantics or found.semantics]
    return _run(found, semantics, args)


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


def _run(found: Experiment, semantics: list[str], args: argparse.Namespace) -> int:
    from inaccfs.experiments.lab import Lab

    lab = Lab(semantics, _nowhere if args.json else output.say, args.plot)
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
            "semantics": semantics,
            "tables": lab.tables,
            "lines": lab.lines,
        }
        output.say_json(msgspec.json.encode(report))
    return 0


def _nowhere(_line: str) -> None:
    """Show nothing: with --json everything is printed at the end."""
