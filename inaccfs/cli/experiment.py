"""inaccfs experiment: run one of the experiments in docs/experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inaccfs.cli import output
from inaccfs.errors import InaccfsError

if TYPE_CHECKING:
    import argparse


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "experiment",
        help="run an experiment on the interface, or list them",
        description="Run one of the experiments that docs/experiments/ explains, on "
        "mounts of its own. Without a name, list them.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument(
        "--semantics",
        action="append",
        default=[],
        metavar="NAME|FILE.py:CLASS",
        help="semantics to run it on, in place of its own; may be repeated",
    )
    parser.add_argument(
        "--plot", metavar="FILE.svg", help="file for the chart, if there is one"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the experiment."""
    from inaccfs.experiments import catalogue
    from inaccfs.experiments.lab import Lab
    from inaccfs.semantics import load

    if args.name is None:
        width = max(map(len, catalogue.NAMES))
        for name in catalogue.NAMES:
            output.say(f"{name:<{width}}  {catalogue.find(name).question}")
        return 0
    found = catalogue.find(args.name)
    for name in args.semantics:
        # Check the names before anything is mounted.
        load.load(name)
    if args.plot is not None:
        # Check this now, and not after minutes of work.
        try:
            open(args.plot, "ab").close()
        except OSError as exc:
            raise InaccfsError(f"cannot write {args.plot}: {exc.strerror}") from exc
    semantics = [load.absolute(name) for name in args.semantics]
    found.run(Lab(semantics or found.semantics, output.say, args.plot))
    return 0
