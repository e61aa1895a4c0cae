"""inaccfs umount: undo a mount."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inaccfs import ending
from inaccfs.cli import output
from inaccfs.cli.progress import progress

if TYPE_CHECKING:
    import argparse


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "umount",
        help="unmount, also after the daemon died",
        description="Unmount, and wait until the daemon has freed the memory. If the "
        "daemon does not answer, its connection is aborted; if it is "
        "dead, the mountpoint is cleaned up. Both print a line. A mount "
        "in use stays mounted.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument(
        "-l",
        "--lazy",
        action="store_true",
        help="detach the mountpoint now; the daemon ends with the last close",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Unmount."""
    with progress(f"unmounting {args.mountpoint}", ticks=True):
        message = ending.unmount(args.mountpoint, lazy=args.lazy)
    if message is not None:
        output.complain(message)
    return 0
