"""Completions for shells: which words may come next.

The shells run the command itself with _ARGCOMPLETE in its environment, so that they
know every option without a list of their own.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final, get_args

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter

from inaccfs.backing.options import HUGE_CHOICES
from inaccfs.cli.commandwords import TYPED
from inaccfs.cli.kvmprobe import AGAINST
from inaccfs.cli.mountoptions import PFN_SOURCES
from inaccfs.experiments import catalogue
from inaccfs.explore.buggy import KVMS
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.fuse import finding
from inaccfs.probe.naming import NAMES
from inaccfs.semantics import VERSIONS
from inaccfs.shim.trace import What

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def answer(parser: argparse.ArgumentParser) -> None:
    """Write the words for the calling shell, and end the process."""
    for prog, action in _actions(parser):
        # First the entry for this command, then the one for all commands.
        for name in (f"{prog} {action.dest}", action.dest):
            if (completer := _COMPLETERS.get(name)) is not None:
                action.completer = completer  # type: ignore[attr-defined]
                break
    argcomplete.autocomplete(parser)


def _mountpoints() -> list[str]:
    return [mounted.path for mounted in finding.mounts()]


def _versions() -> list[str]:
    return [version.name for version in VERSIONS]


def _experiments() -> list[str]:
    return list(catalogue.NAMES)


def _scenarios() -> list[str]:
    return list(SCENARIOS)


def _kvms() -> list[str]:
    return list(KVMS)


def _targets() -> list[str]:
    return [*NAMES, *_mountpoints()]


def _kinds(prefix: str, **_: object) -> list[str]:
    """Completions of a comma-separated list of the kinds of a trace."""
    before, comma, _last = prefix.rpartition(",")
    return [f"{before}{comma}{kind}" for kind in get_args(What)]


def _nothing() -> list[str]:
    return []


class _Words:
    """Completes to the words of a function, and to the paths that *paths* finds."""

    def __init__(
        self,
        words: Callable[[], Iterable[str]],
        paths: Callable[..., Iterable[str]] | None = None,
    ) -> None:
        self._words: Final = words
        self._paths: Final = paths

    def __call__(self, prefix: str, **known: object) -> list[str]:
        paths = () if self._paths is None else self._paths(prefix, **known)
        return [*self._words(), *paths]


_files: Final = FilesCompleter()
_directories: Final = DirectoriesCompleter()

# What an argument may be, by its dest, or by its command and dest; others are files.
_COMPLETERS: Final[dict[str, Callable[..., list[str]]]] = {
    "inaccfs mount mountpoint": _Words(_nothing, _directories),
    "inaccfs mount backing": _Words(_nothing, _directories),
    "inaccfs mount huge": _Words(lambda: HUGE_CHOICES),
    "inaccfs mount pfn_source": _Words(lambda: PFN_SOURCES),
    "inaccfs qmp words": _Words(lambda: TYPED),
    "inaccfs probe target": _Words(_targets, _files),
    "inaccfs probe against": _Words(_targets, _files),
    "inaccfs kvm probe against": _Words(lambda: AGAINST),
    "mountpoint": _Words(_mountpoints, _directories),
    # It may be a socket, too.
    "inaccfs trace mountpoint": _Words(_mountpoints, _files),
    "target": _Words(_mountpoints, _files),
    "mount": _Words(_mountpoints, _directories),
    "semantics": _Words(_versions, _files),
    "names": _Words(_versions, _files),
    "name": _Words(_experiments, _files),
    "scenario": _Words(_scenarios, _files),
    "kvm": _Words(_kvms),
    "filter": _kinds,
}


def _actions(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, argparse.Action]]:
    """The actions of *parser* and its subcommands, each with its command.

    They are private data of argparse.
    """
    for action in parser._actions:
        yield parser.prog, action
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _actions(one)
