"""inaccfs qmp: talk to a mount's control socket."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import TYPE_CHECKING, Any

from inaccfs.cli import output
from inaccfs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Carry out one command on the control socket of a mount and print what it returns, as
JSON. Without COMMAND, commands are read from the standard input, one a line, and events
are printed as they come; answer them by typing invalidate-done, or use --answer.

Names of fds, notifiers and references end with this command.
"""

_EXAMPLES = """\
examples:
  inaccfs qmp /mnt/guests query-stats
  inaccfs qmp /mnt/guests get-pfn file=/guest0 offset=0x10 count=8
  inaccfs qmp /mnt/guests --fd g=/mnt/guests/guest0 get-pfn file=g offset=0
  inaccfs qmp /mnt/guests --watch register-notifier file=/guest0
  rlwrap inaccfs qmp /mnt/guests

commands:
"""


class _Help(argparse.Action):
    """Adds all commands to the help. Only -h imports them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from inaccfs.cli import commandwords

        parser.epilog = _EXAMPLES + commandwords.help_text()
        parser.print_help()
        parser.exit()


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    options = _options()
    parser = commands.add_parser(
        "qmp",
        usage="inaccfs qmp [OPTION...] MOUNTPOINT [COMMAND [NAME=VALUE ...]]",
        parents=[options],
        help="talk to a mount's control socket",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument(
        "-h", "--help", action=_Help, nargs=0, help="show this help, with all commands"
    )
    parser.add_argument(
        "target", metavar="MOUNTPOINT", help="a mount, or the path of its socket"
    )
    # "?" and "*" would match nothing if an option came in between.
    parser.add_argument(
        "words",
        metavar="COMMAND",
        nargs=argparse.REMAINDER,
        help="the command and its arguments; numbers may be 0x10, texts need no "
        "quotes except the shell's",
    )
    parser.set_defaults(run=lambda args: run(args, options))


def _options() -> argparse.ArgumentParser:
    """The options that are allowed before and after the command."""
    parser = output.Parser(add_help=False)
    parser.add_argument(
        "--fd",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="open a file of the mount, and send it with getfd before the command",
    )
    parser.add_argument(
        "--answer", action="store_true", help="answer events as they come"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="answer events, and stay until Ctrl-C or the daemon's end",
    )
    parser.add_argument(
        "--compact", action="store_true", help="print each return in one line"
    )
    return parser


def run(args: argparse.Namespace, options: argparse.ArgumentParser) -> int:
    """Execute the commands; status 1 if one was refused."""
    from inaccfs.cli import commandwords, console
    from inaccfs.client import wire

    _, words = options.parse_known_args(args.words, args)
    for word in words:
        if word.startswith("-"):
            raise OptionError(f"unknown option {word!r}: see inaccfs qmp -h")
    if words:
        # Check the command before connecting.
        commandwords.parse(words)
    names = [_split(word) for word in args.fd]
    connection, conversation = wire.dial(wire.find_socket(args.target))
    with connection:
        made = console.Console(
            connection,
            conversation,
            compact=args.compact,
            events=args.watch or not words,
            answers=args.answer or args.watch,
        )
        with closing(made):
            for name, path in names:
                made.send_fd(name, path)
            if words:
                made.once(words)
            else:
                made.interact()
            if args.watch:
                made.watch()
    return int(made.failed)


def _split(word: str) -> tuple[str, str]:
    name, equals, path = word.partition("=")
    if not (name and equals and path) or name.startswith("/"):
        raise OptionError(f"--fd {word!r} is not NAME=PATH")
    return name, path
