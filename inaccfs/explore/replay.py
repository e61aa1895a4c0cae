"""The name of a schedule, by which it is found again."""

from __future__ import annotations

import hashlib
import inspect
from typing import TYPE_CHECKING, Final

from inaccfs._version import __version__
from inaccfs.errors import InaccfsError
from inaccfs.semantics import checking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.explore.search import Case

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


class ReplayError(InaccfsError):
    """There is no such schedule."""


def name(case: Case, choices: Sequence[int]) -> str:
    """Eight digits of what is explored, and an actor for each step."""
    return f"{_version(case)}-{''.join(_DIGITS[actor] for actor in choices)}"


def choices(case: Case, wanted: str) -> list[int]:
    """The actors that a name has.

    Raises:
        ReplayError: it is none, or that of another version of the scenario or rules.
    """
    version, dash, steps = wanted.partition("-")
    if not dash or not steps or set(steps) - set(_DIGITS):
        raise ReplayError(f"{wanted!r} is no replay ID: take it as explore prints it")
    if version != _version(case):
        raise ReplayError(
            f"replay {version} is of another version of the scenario, the rules or the "
            "KVM: explore anew"
        )
    return [_DIGITS.index(each) for each in steps]


def _version(case: Case) -> str:
    """What a schedule depends on."""
    parts = [__version__, case.kvm, case.scenario.__qualname__]
    parts += [_source(kind) for kind in case.scenario.__mro__[:-1]]
    rules = case.semantics
    parts += [f"{rule}={getattr(rules, rule)}" for rule in checking.rules()]
    parts += [_source(type(rules)) for _ in checking.own_code(rules)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        # Of a class without a file.
        return kind.__qualname__
