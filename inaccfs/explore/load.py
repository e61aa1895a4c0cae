"""Finds scenarios and versions by the words of the command line."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from inaccfs.errors import OptionError
from inaccfs.explore.scenario import Scenario
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import ScenarioError
from inaccfs.explore.weaker import KVMS
from inaccfs.semantics import V8, VERSIONS
from inaccfs.userfiles import UserFile, split
from inaccfs.words import choices, quoted

if TYPE_CHECKING:
    from inaccfs.semantics import Semantics


def scenario(wanted: str) -> type[Scenario]:
    """The scenario of a name, or of FILE.py:CLASS; this runs the file.

    Raises:
        OptionError: there is no scenario of that name.
        ScenarioError: the file raises, or the class is not a scenario that can run.
    """
    if wanted in SCENARIOS:
        return SCENARIOS[wanted]
    path, name = split(wanted) or (wanted, "")
    if not path.endswith(".py"):
        which = choices(wanted, list(SCENARIOS), ", and your own as FILE.py:CLASS")
        raise OptionError(f"unknown scenario {quoted(wanted)}: {which}")
    file = UserFile("scenario", path)
    try:
        file.run()
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        raise ScenarioError(f"scenario {path}: {file.reason(exc)}") from exc
    if not name:
        raise file.unnamed(Scenario)
    found = getattr(file.module, name, None)
    if isinstance(found, type) and issubclass(found, Scenario):
        check(found)
        return found
    if found is not None:
        raise OptionError(
            f"scenario {wanted} is not derived from inaccfs.explore.Scenario"
        )
    raise file.lacks(name, Scenario)


def check(found: type[Scenario]) -> None:
    """Refuse methods that would have no effect when called. Raises `ScenarioError`."""
    called = f"scenario {found.__name__}"
    names = [name for kind in found.__mro__ for name in vars(kind)]
    actors = [name for name in names if name.startswith("actor_")]
    if not actors:
        raise ScenarioError(f"{called}: there is no method actor_NAME")
    if found.setup is Scenario.setup:
        raise ScenarioError(f"{called}: there is no method setup, which makes files")
    for name in ["setup", *actors, *(["always"] if found.always is not None else [])]:
        method = getattr(found, name)
        if not callable(method):
            raise ScenarioError(f"{called}.{name} is not a method")
        if inspect.iscoroutinefunction(method) or inspect.isgeneratorfunction(method):
            raise ScenarioError(f"{called}.{name} is called, and must be a plain def")


def known_kvm(wanted: str) -> str:
    """*wanted*, if it is a word of --kvm; else raises `OptionError`."""
    if wanted not in KVMS:
        raise OptionError(f"unknown KVM {quoted(wanted)}: there are {', '.join(KVMS)}")
    return wanted


def versions() -> dict[str, Semantics]:
    """Each version, with the first one whose rules are equal for a search.

    Proposals are left out, and can be named on the command line: most scenarios use
    nothing that is new in them, and those of `inaccfs.explore.inplace` find nothing in
    other versions.
    """
    found: dict[tuple[object, ...], Semantics] = {}
    return {
        rules.name: found.setdefault(_seen(rules), rules)
        for rules in (make() for make in VERSIONS if make.__module__ == V8.__module__)
    }


def _seen(rules: Semantics) -> tuple[object, ...]:
    """The rules that can change a search. Those about sizes and alignment cannot."""
    return (
        *(rules.order, rules.notifies, rules.notifies_failures, rules.scope),
        *(rules.exclusive, rules.reported, rules.list_locked, rules.references),
        *(rules.unit, rules.populates, rules.tells_frames, rules.memory_failure),
        *(rules.past_end, rules.size, rules.movable, tuple(rules.events)),
        rules.get_waits,
    )
