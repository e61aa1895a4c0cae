"""Finds scenarios and versions by the words of the command line."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

from inaccfs.errors import OptionError
from inaccfs.explore.buggy import KVMS
from inaccfs.explore.scenario import Scenario
from inaccfs.explore.scenarios import SCENARIOS
from inaccfs.explore.search import ScenarioError
from inaccfs.semantics import V8, VERSIONS, checking
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
    nothing that is new in them, and those of `inaccfs.explore.proposals` find nothing
    in other versions.
    """
    found: dict[tuple[object, ...], Semantics] = {}
    return {
        rules.name: found.setdefault(_with_effect(rules), rules)
        for rules in (make() for make in VERSIONS if make.__module__ == V8.__module__)
    }


# Rules that change no search by those that `versions` returns: errnos, numbers and
# alignments; calls that no scenario makes; kinds of VMs that scenarios do not have; and
# `initial`, which matters only if files keep attributes: `_with_effect` adds it then.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "aligned",
        "attributes",
        "initial",
        "keep_size_required",
        "kvm_bad_fd",
        "kvm_default_vm",
        "kvm_exit_flag",
        "kvm_exit_returns",
        "kvm_ignores_unused",
        "kvm_pre_fault",
        "kvm_pre_fault_error",
        "kvm_pre_fault_partial",
        "magic",
        "mmap",
        "on_interrupt",
        "overlap_errno",
        "read_errno",
        "unbound_errno",
    }
)


def _with_effect(rules: Semantics) -> tuple[object, ...]:
    """The rules that may change a search. A new rule is one of them at first."""
    return (
        rules.in_place and rules.initial,
        tuple(rules.events),
        *(
            getattr(rules, name)
            for name in checking.rules()
            if name not in _WITHOUT_EFFECT
        ),
    )
