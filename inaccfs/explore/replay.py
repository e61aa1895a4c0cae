"""Replay IDs: the name of a schedule, by which it can be run again."""

from __future__ import annotations

import hashlib
import inspect
import string
from pathlib import Path
from typing import TYPE_CHECKING, Final

from inaccfs._version import __version__
from inaccfs.errors import OptionError
from inaccfs.explore.search import MOST_ACTORS
from inaccfs.semantics import checking
from inaccfs.words import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.explore.search import Case

_DIGITS: Final = string.digits + string.ascii_lowercase + string.ascii_uppercase
assert len(_DIGITS) == MOST_ACTORS


def name(case: Case, choices: Sequence[int]) -> str:
    """Eight digits of a hash of the case, and the actor of each step."""
    return f"{_version(case)}-{''.join(_DIGITS[actor] for actor in choices)}"


def choices(case: Case, wanted: str) -> list[int]:
    """The actors of a replay ID, by step.

    Raises:
        OptionError: it is not a replay ID, or belongs to another version of the
        scenario, the rules or the KVM.
    """
    version, dash, steps = wanted.partition("-")
    if not dash or set(steps) - set(_DIGITS):
        raise OptionError(
            f"{quoted(wanted)} is no replay ID: take it as explore prints it"
        )
    if version != _version(case):
        raise OptionError(
            f"replay {quoted(version)} is of another version of the scenario, the "
            "rules or the KVM: explore anew"
        )
    return [_DIGITS.index(each) for each in steps]


def _version(case: Case) -> str:
    """A hash of all that a schedule depends on; of a user's class, the whole file."""
    rules = case.semantics
    parts = [__version__, case.kvm, case.scenario.__qualname__]
    parts += [f"{rule}={getattr(rules, rule)}" for rule in checking.rules()]
    files = {_file(kind) for kind in case.scenario.__mro__[:-1]}
    files |= {
        str(getattr(code, "co_filename", ""))
        for code in checking.own_code(rules).values()
    }
    parts += [_text(path) for path in sorted(files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _file(kind: type) -> str:
    try:
        return inspect.getfile(kind)
    except (OSError, TypeError):
        # The class was typed in, so there is no file.
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().hex()
    except OSError:
        return ""
