"""docs/semantics.md says what the rules are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import pytest

from inaccfs import cli
from inaccfs.errors import OptionError
from inaccfs.semantics import VERSIONS, checking, load
from inaccfs.semantics.rules import INVALIDATE
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from inaccfs.semantics import Semantics

TEXT = (Path(__file__).parents[2] / "docs" / "semantics.md").read_text()
HUGE = 2 << 20


def rows(title: str) -> list[list[str]]:
    """The cells of all tables whose first column has this title."""
    tables = re.findall(
        rf"^\| {title} \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE
    )
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for table in tables
        for line in table.splitlines()
    ]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def values(kind: Any) -> list[str]:
    """The values of a rule of this type, as the page lists them."""
    if get_origin(kind) is not None:
        return [f'"{value}"' for value in get_args(kind)]
    return ["True", "False"] if kind is bool else []


RULES = {codes(rule)[0]: (allowed, meaning) for rule, allowed, meaning in rows("rule")}


def test_the_rules_are_all_there_and_no_others() -> None:
    assert sorted(RULES) == sorted(checking.rules())


@pytest.mark.parametrize(("rule", "kind"), checking.rules().items(), ids=str)
def test_every_value_of_a_rule_is_there(rule: str, kind: Any) -> None:
    allowed, meaning = RULES[rule]
    assert codes(allowed) == values(kind)
    if kind is int:
        assert allowed == ("an errno" if rule.endswith("_errno") else "32 bits")
    assert meaning


def test_the_versions_are_all_there() -> None:
    assert [codes(name) for name, *_ in rows("name")] == [
        [one.name] for one in VERSIONS
    ]


def test_the_methods_are_all_there() -> None:
    methods = [codes(method)[0].partition("(")[0] for method, *_ in rows("method")]
    assert methods == list(checking._METHODS)


def test_the_output_is_the_real_one(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```console\n\$ inaccfs (.*)\n([^`]*)```", TEXT)
    assert found is not None
    assert cli.main(found[1].split()) == 0
    assert capsys.readouterr().out == found[2]


# --- the examples ---------------------------------------------------------------------


@pytest.fixture
def examples(tmp_path: Path) -> dict[str, Semantics]:
    """The classes of the page by name, loaded as by `--semantics`."""
    found = {}
    for number, text in enumerate(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)):
        assert len(text.splitlines()) <= 20
        path = tmp_path / f"example{number}.py"
        path.write_text(text)
        for name in re.findall(r"^class (\w+)", text, re.MULTILINE):
            found[name] = load.load(f"{path}:{name}")
    return found


def test_the_examples_do_what_they_say(examples: dict[str, Semantics]) -> None:
    assert sorted(examples) == ["Before", "OppositeOnly", "Twice", "WholeFolios"]
    assert examples["OppositeOnly"].conversion_kinds == "opposite"
    assert examples["Before"].plan(punches=True).before == INVALIDATE
    twice = examples["Twice"]
    assert twice.events == [INVALIDATE]
    assert not twice.plan(punches=False)
    check = examples["WholeFolios"].check_fallocate
    check(PUNCH, HUGE, 2 * HUGE, 4096)
    check(FALLOC_FL_KEEP_SIZE, 0, 4096, 4096)
    with refused(22):
        check(PUNCH, 0, 4096, 4096)


# --- messages -------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "expected"), rows("mistake"))
def test_a_mistake_is_reported_as_the_page_says(
    body: str, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    head = "from inaccfs.semantics import V8\n\n\nclass Mine(V8):\n    "
    path.write_text(f"{head}{codes(body)[0]}\n")
    with pytest.raises(OptionError) as caught:
        load.load(f"{path}:Mine")
    assert str(caught.value).replace(str(path), "FILE") == codes(expected)[0]


def test_an_unknown_name_is_reported_as_the_page_says() -> None:
    said = re.search(r"`(unknown semantics [^`]*)\.\.\.`", TEXT)
    assert said is not None
    with pytest.raises(OptionError, match=re.escape(said[1])):
        load.load("v11")
