"""The command line: one module a subcommand, and the one place where errors end."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from inaccfs._version import __version__
from inaccfs.cli import experiment, kvm, mount, probe, qmp, semantics, status, umount
from inaccfs.errors import InaccfsError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status.

    Only what the user can put right is caught here and told in one line, with status
    1. Anything else is a bug and keeps its traceback.
    """
    parser = argparse.ArgumentParser(
        prog="inaccfs",
        description="memory that userspace can size, allocate and punch, but never "
        "read, write or map",
    )
    parser.add_argument("--version", action="version", version=f"inaccfs {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (mount, umount, status, semantics, qmp, kvm, probe, experiment):
        module.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        exit_status = int(args.run(args))
        sys.stdout.flush()
    except InaccfsError as exc:
        print(f"inaccfs: {exc}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads has had enough; Python must not complain of it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return exit_status
