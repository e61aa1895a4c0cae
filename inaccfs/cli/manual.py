"""Makes the man pages and the completions.

usage: python -m inaccfs.cli.manual

The files are kept in the repository, so that an installation needs neither of the
libraries that make them. A test compares them with what this makes.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from argcomplete.shell_integration import shellcode
from argparse_manpage.manpage import Manpage

from inaccfs._version import __version__
from inaccfs.cli import dispatch
from inaccfs.system.files import SHARE

if TYPE_CHECKING:
    from pathlib import Path

_TITLE: Final = "inaccfs manual"

_COMPLETIONS: Final = {
    "bash": "bash-completion/completions/inaccfs",
    "zsh": "zsh/site-functions/_inaccfs",
    "fish": "fish/vendor_completions.d/inaccfs.fish",
}


def generated(parser: argparse.ArgumentParser) -> dict[Path, str]:
    """The content of each file of share/, for the parser of `inaccfs`."""
    commands = _commands(parser)
    found = {"man/man1/inaccfs.1": _overview(parser, commands)}
    for name, (one, summary) in commands.items():
        found[f"man/man1/inaccfs-{name}.1"] = _page(one, f"inaccfs-{name}", summary)
    for shell, path in _COMPLETIONS.items():
        # A trailing newline ends each file, and there are no blank lines at its start.
        found[path] = shellcode(["inaccfs"], shell=shell).strip() + "\n"
    return {SHARE / path: text for path, text in found.items()}


def _commands(
    parser: argparse.ArgumentParser,
) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """The subcommands of *parser*, each with its parser and its line of help.

    argparse has them in private attributes only.
    """
    [group] = [
        action
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    lines = {one.dest: one.help or "" for one in group._choices_actions}
    return {name: (one, lines[name]) for name, one in group.choices.items()}


def _overview(
    parser: argparse.ArgumentParser,
    commands: dict[str, tuple[argparse.ArgumentParser, str]],
) -> str:
    """inaccfs(1): the options before a command, and the list of commands."""
    short = argparse.ArgumentParser(
        prog=parser.prog, usage=parser.format_usage().removeprefix("usage: ").strip()
    )
    short.add_argument("--version", action="store_true", help="print the version")
    page = _manpage(short, parser.prog, parser.description or "")
    listed = [
        f".TP\n.BR inaccfs\\-{_escaped(name)} (1)\n{_escaped(summary)}"
        for name, (_, summary) in commands.items()
    ]
    page.add_section("commands", ">", "\n".join(listed))
    return str(page)


def _page(parser: argparse.ArgumentParser, name: str, summary: str) -> str:
    page = _manpage(parser, name, summary)
    page.add_section("see also", ">", ".BR inaccfs (1)")
    return str(page)


def _manpage(parser: argparse.ArgumentParser, name: str, summary: str) -> Manpage:
    # The width of lines must not depend on the terminal.
    class Wide(argparse.HelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=79)

    parser.formatter_class = Wide
    page = Manpage(
        parser,
        # No date: the page of a version is the same whenever it is made.
        {
            "project_name": "inaccfs",
            "version": __version__,
            "manual_title": _TITLE,
            "date": " ",
            "description": summary,
        },
    )
    page.prog = name
    return page


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("-", "\\-")


def main() -> None:
    """Write all files, and remove those that are no longer made."""
    made = generated(dispatch.parser())
    for path in SHARE.rglob("*"):
        if path.is_file() and path not in made:
            path.unlink()
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
