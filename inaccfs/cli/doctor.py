"""inaccfs doctor: what this machine has, and what does not work without the rest."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import msgspec

from inaccfs import doctor
from inaccfs.cli import output, terminal

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
        output.say(as_text(found, terminal.width()))
    return 0 if doctor.can_mount(found) else 1


def as_text(found: list[Finding], width: int = 0) -> str:
    """A line per finding; below it what does not work, and how to get it.

    Fold texts of more than *width* columns, unless it is 0.
    """
    names = max(len(one.name) for one in found)
    lines = []
    for one in found:
        lines.append((f"{one.state:<7}  {one.name:<{names}}  ", one.found))
        if one.state != "ok":
            lines.append((f"{'':<7}  without it:  ", one.without))
            lines.append((f"{'':<7}  to get it:   ", one.fix))
    return "\n".join(_folded(head, text, width) for head, text in lines)


def _folded(head: str, text: str, width: int) -> str:
    """*text* after *head*, and below itself."""
    if not width:
        return head + text
    return textwrap.fill(
        text,
        # A narrower terminal folds it by itself.
        max(width, 2 * len(head)),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        # Options and paths stay whole.
        break_long_words=False,
        break_on_hyphens=False,
    )
