"""inaccfs doctor: what this machine has, and what does not work without the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from inaccfs import doctor
from inaccfs.cli import output

if TYPE_CHECKING:
    import argparse

    from inaccfs.doctor import Finding


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="show what this machine lacks, what works without it, and how to get it",
        description="Look at /dev/fuse, fusermount3, the kernel's features and this "
        "user's limits. For each thing that is missing, say what still "
        "works and how to get it. The command changes nothing.",
        epilog="exit status: 0 if this user can mount here, else 1",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print all findings."""
    found = doctor.examine()
    if args.json:
        output.say_json(msgspec.json.encode(found))
    else:
        output.say(as_text(found))
    return 0 if doctor.can_mount(found) else 1


def as_text(found: list[Finding]) -> str:
    """A line per finding; below it what does not work, and how to get it."""
    width = max(len(one.name) for one in found)
    lines = []
    for one in found:
        lines.append(f"{one.state:<7}  {one.name:<{width}}  {one.found}")
        if one.state != "ok":
            lines.append(f"{'':<7}  {'':<{width}}  without it: {one.without}")
            lines.append(f"{'':<7}  {'':<{width}}  to get it: {one.fix}")
    return "\n".join(lines)
