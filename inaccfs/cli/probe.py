"""inaccfs probe: try every system call on a file, and compare two kinds of files."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from inaccfs.cli import output, terminal
from inaccfs.cli.progress import progress
from inaccfs.cli.statuses import TROUBLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.probe.table import Result
    from inaccfs.probe.targets import Target

_DESCRIPTION = """\
Try every system call that could reach or resize a file, and print by name what comes of
it: ok, an errno, a signal, or why it could not be tried here.

TARGET, and OTHER, is
  DIRECTORY         files without a name in it, a new one for each row
  FILE              this file, which loses what is in it, gets a size, is allocated,
                    punched and sealed; it must be empty, unless there is --force
  memfd             a new memfd for each row; a file of that name is ./memfd
  memfd_secret      a new memfd_secret for each row
  guest_memfd[:FLAG[+FLAG]]
                    a new guest_memfd for each row, of a VM of its own; FLAG is mmap or
                    init_shared
"""

_STATUS = """\
examples:
  inaccfs probe /mnt/guests
  inaccfs probe guest_memfd --against /mnt/guests
  inaccfs probe --json memfd_secret

exit status: 0; with --against 1 if there are differences; 2 if there is trouble
"""


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "probe",
        help="try every system call on a file, or on two, and mark the differences",
        description=_DESCRIPTION,
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument(
        "--against", metavar="OTHER", help="compare: rows that differ are marked with !"
    )
    parser.add_argument(
        "--force", action="store_true", help="use a FILE that is not empty, too"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run, failed=TROUBLE)


def run(args: argparse.Namespace) -> int:
    """Probe; status 1 if there are differences, 2 if it could not be done."""
    # Imported here because no other subcommand needs it.
    from inaccfs.probe import naming, table

    names = [args.target, *([args.against] if args.against is not None else [])]
    found: list[Target] = [naming.find(name, force=args.force) for name in names]
    # No thread may draw the bar, because each row runs in a fork.
    with progress("probing", len(found) * len(table.ROWS)) as shown:
        results = table.try_all(found, step=shown.step)
    _show(args, found, results)
    return int(any(result.differs for result in results))


def _show(
    args: argparse.Namespace, found: Sequence[Target], results: Sequence[Result]
) -> None:
    from inaccfs.probe import report

    if args.json:
        output.say_json(report.as_json(found, results).encode())
    else:
        output.say(report.table(found, results, terminal.width() or None))
