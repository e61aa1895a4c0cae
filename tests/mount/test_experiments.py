"""Every experiment of docs/experiments is run, and says what its page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from inaccfs.experiments import catalogue

PAGES = Path(__file__).parents[2] / "docs" / "experiments"
PATIENCE = 120.0


def experiment(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inaccfs", "experiment", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def shown(name: str) -> str:
    """The output that the page has."""
    page = (PAGES / f"{name}.md").read_text()
    found = re.search(
        rf"```console\n\$ inaccfs experiment {name}\n(.*?)```", page, re.DOTALL
    )
    assert found is not None, f"{name}.md has no output"
    return found[1]


def comparable(output: str, *, exact: bool) -> list[str]:
    """Lines; without *exact* all numbers are alike, and so are all widths."""
    lines = [line.rstrip() for line in output.splitlines()]
    if exact:
        return lines
    return [re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*", "N", line)) for line in lines]


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_an_experiment_says_what_its_page_says(name: str) -> None:
    ran = experiment(name)
    assert (ran.returncode, ran.stderr) == (0, "")
    exact = catalogue.find(name).exact
    assert comparable(ran.stdout, exact=exact) == comparable(shown(name), exact=exact)


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_an_experiment_runs_on_rules_of_ones_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from inaccfs.semantics import V8\n\n\nclass Mine(V8):\n    order = 'before'\n"
    )
    ran = experiment(name, "--semantics", f"{tmp_path}/mine.py:Mine")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Mine" in ran.stdout


def test_all_pages_and_modules_belong_together() -> None:
    pages = {page.stem for page in PAGES.glob("*.md")} - {"README"}
    index = (PAGES / "README.md").read_text()
    assert pages == set(catalogue.NAMES)
    for name in catalogue.NAMES:
        question = catalogue.find(name).question
        assert f"| [{name}]({name}.md) | {question} |" in index


def test_they_are_listed() -> None:
    ran = experiment()
    assert ran.returncode == 0
    for name in catalogue.NAMES:
        assert re.search(rf"^{name} +\S", ran.stdout, re.MULTILINE)


def test_a_plot_that_cannot_be_written_is_reported_first() -> None:
    ran = experiment("bindings", "--plot", "/nowhere/x.svg")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == (
        "inaccfs: cannot write /nowhere/x.svg: No such file or directory\n"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("siez",), "inaccfs: no experiment 'siez': did you mean size? There are "),
        (("size", "--semantics", "v99"), "inaccfs: unknown semantics 'v99': "),
    ],
    ids=["name", "semantics"],
)
def test_a_wrong_word_is_reported_in_a_line(
    words: tuple[str, ...], expected: str
) -> None:
    ran = experiment(*words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(expected)
    assert ran.stderr.count("\n") == 1
