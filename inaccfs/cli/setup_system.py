"""inaccfs setup-system: installs the helper, unit, man pages and completions."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inaccfs.cli import output
from inaccfs.errors import OptionError
from inaccfs.system.install import Installer

if TYPE_CHECKING:
    import argparse


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "setup-system",
        help="install the mount helper, the systemd unit, man pages and completions",
        description="Copy the helper of mount(8), the systemd unit, the man pages and "
        "the completions for bash, zsh and fish to where the system looks "
        "for them, or remove them again. Files that this command has not "
        "installed, or that were changed afterwards, stay as they are. "
        "The helper goes to /sbin if the prefix is /usr/local, otherwise "
        "to PREFIX/sbin.",
    )
    parser.add_argument(
        "--prefix",
        metavar="DIR",
        default="/usr/local",
        help="install below this directory (default: %(default)s)",
    )
    parser.add_argument(
        "--root",
        metavar="DIR",
        default="/",
        help="write below this directory, as with DESTDIR: for packagers",
    )
    parser.add_argument(
        "--command",
        dest="program",
        metavar="PATH",
        help="the inaccfs that the helper and the unit run (default: this one)",
    )
    parser.add_argument(
        "--remove", action="store_true", help="remove what was installed"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="only print what would be done"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Install, or remove."""
    installer = Installer(
        _directory("--prefix", args.prefix), _directory("--root", args.root)
    )
    if args.remove:
        lines = installer.remove(dry_run=args.dry_run)
    else:
        lines = installer.install(_program(args.program), dry_run=args.dry_run)
    for line in lines:
        output.say(line)
    return 0


def _directory(option: str, word: str) -> Path:
    if not word or "\0" in word:
        raise OptionError(f"{option}: name a directory")
    return Path(os.path.abspath(word))


def _program(word: str | None) -> str:
    """The path of the command that the helper and the unit run."""
    if word is not None:
        if not os.path.isabs(word):
            raise OptionError(f"--command {word}: name an absolute path")
        return word
    beside = os.path.join(os.path.dirname(sys.executable), "inaccfs")
    found = beside if os.access(beside, os.X_OK) else shutil.which("inaccfs")
    if found is None:
        raise OptionError("no inaccfs in PATH: name the one to run with --command")
    return os.path.abspath(found)
