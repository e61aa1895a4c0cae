"""From the words of the command line to scenarios and versions."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from inaccfs.errors import OptionError
from inaccfs.explore.scenario import Scenario
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import ScenarioError
from inaccfs.semantics import VERSIONS
from inaccfs.semantics.load import read_module, split
from inaccfs.words import quoted

if TYPE_CHECKING:
    from types import ModuleType

    from inaccfs.semantics import Semantics


def scenario(wanted: str) -> type[Scenario]:
    """The scenario of a name, or of FILE.py:CLASS, whose file is run.

    Raises:
        OptionError: nothing has that name.
        ScenarioError: the file raises.
    """
    if wanted in SCENARIOS:
        return SCENARIOS[wanted]
    parts = split(wanted)
    if parts is None:
        near = difflib.get_close_matches(wanted, SCENARIOS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise OptionError(
            f"unknown scenario {quoted(wanted)}: {hint}There are "
            f"{', '.join(SCENARIOS)}, and your own as FILE.py:CLASS"
        )
    path, name = parts
    module = _module(path)
    found = getattr(module, name, None)
    if not isinstance(found, type) or not issubclass(found, Scenario):
        raise OptionError(
            f"scenario {path} has no class {name!r} that is derived from "
            "inaccfs.explore.Scenario"
        )
    return found


def _module(path: str) -> ModuleType:
    module, source = read_module("scenario", path)
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise ScenarioError(f"scenario {path}: {type(exc).__name__}: {exc}") from exc
    return module


def label(wanted: str) -> str:
    """What a scenario is called in a row."""
    parts = split(wanted)
    return wanted if parts is None else parts[1]


def versions() -> list[Semantics]:
    """One of all versions whose rules are the same for what is explored."""
    found: dict[tuple[object, ...], Semantics] = {}
    for make in VERSIONS:
        rules = make()
        found.setdefault(_seen(rules), rules)
    return list(found.values())


def _seen(rules: Semantics) -> tuple[object, ...]:
    """The rules that make a difference; sizes and alignment do not."""
    return (
        *(rules.order, rules.notifies, rules.notifies_failures, rules.scope),
        *(rules.exclusive, rules.reported, rules.list_locked, rules.references),
        *(rules.unit, rules.populates, rules.tells_frames, rules.memory_failure),
        *(rules.past_end == "refused", rules.movable, tuple(rules.events)),
    )
