"""Each value of each rule works: in a class that derives from v8, and in its plan."""

from __future__ import annotations

import errno
from typing import get_args, get_origin

import pytest

from inaccfs.control import messages, queries
from inaccfs.semantics import V8, VERSIONS, Plan, Semantics, checking, rules
from inaccfs.semantics.rules import (
    INVALIDATE,
    INVALIDATE_END,
    INVALIDATE_START,
    POPULATE,
)
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.unit.one_file import PAGE, mine, outcome


def _values() -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for rule, kind in checking.rules().items():
        if get_origin(kind) is not None:
            found += [(rule, value) for value in get_args(kind)]
        elif kind is bool:
            found += [(rule, False), (rule, True)]
    return found


VALUES = _values()


def test_every_rule_that_has_choices_is_looked_at() -> None:
    chosen = {rule for rule, _ in VALUES}
    errnos = {"read_errno", "unbound_errno", "overlap_errno"}
    assert set(checking.rules()) - chosen == {"magic", *errnos}


@pytest.mark.parametrize(
    ("rule", "value"), VALUES, ids=[f"{rule}={value}" for rule, value in VALUES]
)
def test_every_value_of_every_rule_can_be_had(rule: str, value: object) -> None:
    """One line in a class from v8 gives the value, and all methods return something."""
    mine = type("Mine", (V8,), {rule: value})
    made = checking.checked(mine, "mine.py")
    assert getattr(made, rule) == value
    assert all(event in messages.EVENTS for event in made.events)
    rules = queries.semantics(made)
    assert rules.name == "Mine"
    assert set(rules.commands) <= set(messages.COMMANDS)


def plans(**chosen: object) -> tuple[Plan, Plan]:
    made = mine(**chosen)
    return made.plan(punches=True), made.plan(punches=False)


@pytest.mark.parametrize(
    ("chosen", "punches", "others"),
    [
        ({}, Plan(after=INVALIDATE, after_failure=True), None),
        ({"notifies_failures": False}, Plan(after=INVALIDATE), None),
        ({"order": "before"}, Plan(before=INVALIDATE), None),
        (
            {"order": "bracket", "notifies_failures": False},
            Plan(INVALIDATE_START, INVALIDATE_END, after_failure=True),
            None,
        ),
        (
            {"notifies": "punches"},
            Plan(after=INVALIDATE, after_failure=True),
            Plan(),
        ),
        (
            {"notifies": "punches", "populates": True},
            Plan(after=INVALIDATE, after_failure=True),
            Plan(after=POPULATE),
        ),
        (
            {"order": "bracket", "populates": True},
            Plan(INVALIDATE_START, INVALIDATE_END, after_failure=True),
            Plan(after=POPULATE),
        ),
    ],
    ids=str,
)
def test_the_plan_follows_from_the_rules(
    chosen: dict[str, object], punches: Plan, others: Plan | None
) -> None:
    assert plans(**chosen) == (punches, punches if others is None else others)


def test_a_start_has_its_end_even_if_the_change_fails() -> None:
    for version in VERSIONS:
        for punches in (True, False):
            plan = version().plan(punches=punches)
            assert (plan.before == INVALIDATE_START) is (plan.after == INVALIDATE_END)
            if plan.after == INVALIDATE_END:
                assert plan.after_failure


def test_a_size_that_is_free_is() -> None:
    made = mine(size="free")
    for current, new in ((0, 1), (1, 0), (PAGE, PAGE), (PAGE, 5), (5, PAGE)):
        made.check_size(current, new, PAGE)


@pytest.mark.parametrize(
    ("aligned", "punch", "allocation"),
    [
        ("every fallocate", "EINVAL", "EINVAL"),
        ("punches", "EINVAL", "ok"),
        ("nothing", "ok", "ok"),
    ],
)
def test_calls_that_must_be_aligned(aligned: str, punch: str, allocation: str) -> None:
    made = mine(aligned=aligned)
    for mode, wanted in (
        (PUNCH, punch),
        (FALLOC_FL_KEEP_SIZE, allocation),
        (0, allocation),
    ):
        assert outcome(made.check_fallocate, mode, 1, PAGE, PAGE) == wanted
        assert outcome(made.check_fallocate, mode, 0, PAGE, PAGE) == "ok"


def test_query_semantics_returns_each_rule() -> None:
    for version in VERSIONS:
        made = version()
        rules = queries.semantics(made)
        for field in rules.__struct_fields__:
            if field != "commands":
                assert getattr(rules, field) == getattr(made, field)


def test_a_refusal_has_the_kernels_words() -> None:
    made = rules.refused(errno.ENOLCK)
    assert (made.errno, made.strerror) == (errno.ENOLCK, "No locks available")


def test_the_base_has_no_rules_of_its_own() -> None:
    """Otherwise a class that omits a rule would get an arbitrary one."""
    assert not any(hasattr(Semantics, rule) for rule in checking.rules())
