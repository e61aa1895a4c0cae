"""Completions for shells: which words may come next.

The shells run the command itself with _ARGCOMPLETE in its environment, so that they
know every option without a list of their own.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final, get_args

import argcomplete
from argcomplete.completers import FilesCompleter

from inaccfs.experiments import catalogue
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.weaker import KVMS
from inaccfs.fuse import finding
from inaccfs.semantics import VERSIONS
from inaccfs.shim.trace import What

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def answer(parser: argparse.ArgumentParser) -> None:
    """Write the words for the calling shell, and end the process."""
    files = FilesCompleter()
    for action in _actions(parser):
        more = _WORDS.get(action.dest)
        if more is not None:
            action.completer = _Words(more, files)  # type: ignore[attr-defined]
        elif action.dest == "filter":
            action.completer = _kinds  # type: ignore[attr-defined]
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


def _kinds(prefix: str, **_: object) -> list[str]:
    """Completions of a comma-separated list of the kinds of a trace."""
    before, comma, _last = prefix.rpartition(",")
    return [f"{before}{comma}{kind}" for kind in get_args(What)]


# Values of arguments that are not files, by dest.
_WORDS: Final[dict[str, Callable[[], list[str]]]] = {
    "mountpoint": _mountpoints,
    "target": _mountpoints,
    "mount": _mountpoints,
    "semantics": _versions,
    "names": _versions,
    "name": _experiments,
    "scenario": _scenarios,
    "kvm": _kvms,
}


class _Words:
    """Completes to the words of a function, or to files."""

    def __init__(self, words: Callable[[], list[str]], files: FilesCompleter) -> None:
        self._words: Final = words
        self._files: Final = files

    def __call__(self, prefix: str, **known: object) -> list[str]:
        return [*self._words(), *self._files(prefix, **known)]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The actions of *parser* and of its subcommands, from argparse's private data."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from _actions(one)
