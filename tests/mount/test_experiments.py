"""Every experiment of docs/experiments is run, and prints what its page shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from inaccfs.experiments import catalogue
from tests.mount.support import without_progress

PAGES = Path(__file__).parents[2] / "docs" / "experiments"
# It only decides how long a failing test takes.
PATIENCE = 300.0

# Their pages are compared by tests/hard; here they run on rules of one's own.
LONG: Final = ("folios", "compaction", "dma")


def experiment(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `inaccfs experiment`, without its lines of progress."""
    ran = subprocess.run(
        [sys.executable, "-m", "inaccfs", "experiment", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    ran.stderr = without_progress(ran.stderr)
    return ran


def shown(name: str) -> str:
    """The output that the page has."""
    page = (PAGES / f"{name}.md").read_text()
    found = re.search(
        rf"```console\n\$ inaccfs experiment {name}\n(.*?)```", page, re.DOTALL
    )
    assert found is not None, f"{name}.md has no output"
    return found[1]


def comparable(output: str, *, exact: bool) -> list[str]:
    """The lines of an output; without *exact* all numbers and widths are equal."""
    lines = [line.rstrip() for line in output.splitlines()]
    if exact:
        return lines
    return [re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*", "N", line)) for line in lines]


def check(name: str) -> None:
    """An experiment says what its page says."""
    ran = experiment(name)
    assert (ran.returncode, ran.stderr) == (0, "")
    exact = catalogue.find(name).exact
    assert comparable(ran.stdout, exact=exact) == comparable(shown(name), exact=exact)


@pytest.mark.parametrize("name", sorted({*catalogue.NAMES} - {*LONG}))
def test_an_experiment_says_what_its_page_says(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", catalogue.NAMES)
def test_an_experiment_runs_on_rules_of_ones_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from inaccfs.semantics import V8\n\n\nclass Mine(V8):\n    order = 'before'\n"
    )
    ran = experiment(name, "--semantics", f"{tmp_path}/mine.py:Mine")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Mine" in ran.stdout


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("content", "in-place-next"),
        ("dma", "v7"),
        ("holding", "v7"),
        ("lock", "in-place-v8"),
        ("order", "hugetlb-rfc"),
        ("order", "in-place-v8"),
        ("pins", "v9"),
        ("split", "in-place-next"),
    ],
)
def test_an_experiment_runs_on_any_version_or_says_why_not(
    name: str, version: str
) -> None:
    ran = experiment(name, "--semantics", version)
    if ran.returncode == 0:
        assert (ran.stderr, version in ran.stdout) == ("", True)
        return
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(
        f"inaccfs: experiment {name} cannot run on {version}: it "
    )
    assert ran.stderr.count("\n") == 1


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


def test_a_plot_into_a_fifo_that_nobody_reads_does_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    os.mkfifo(path)
    ran = experiment("bindings", "--plot", str(path))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"inaccfs: cannot write {path}: No such device or address\n"


def test_an_experiment_without_a_chart_takes_no_plot(tmp_path: Path) -> None:
    path = tmp_path / "x.svg"
    ran = experiment("size", "--plot", str(path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(
        "inaccfs: experiment size draws no chart: leave out --plot\n"
    )
    assert not path.exists()


@pytest.mark.parametrize(
    ("body", "expected", "status"),
    [
        ("lab.draw('<svg/>')", "", 0),
        ("lab.say('no chart')", "inaccfs: experiment Mine has drawn no chart\n", 1),
    ],
)
def test_a_plot_of_ones_own(
    body: str, expected: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n"
        "    question, draws = 'Is there a chart?', True\n"
        "    def run(self, lab):\n"
        f"        {body}\n"
    )
    path = tmp_path / "x.svg"
    path.write_text("a longer chart of another run")
    ran = experiment(f"{tmp_path}/mine.py:Mine", "--plot", str(path))
    assert (ran.returncode, ran.stderr) == (status, expected)
    assert path.read_text() == ("" if status else "<svg/>")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ("siez",),
            "inaccfs: unknown experiment 'siez': did you mean size? There ",
        ),
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


# --- a user's experiments -------------------------------------------------------------


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    page = (PAGES / "README.md").read_text()
    found = re.search(
        r"```python\n(.*?)```\n\n```console\n\$ inaccfs experiment (\S+)\n(.*?)```",
        page,
        re.DOTALL,
    )
    assert found is not None
    source, name, out = found.groups()
    assert len(source.splitlines()) <= 30
    (tmp_path / "mine.py").write_text(source)
    ran = experiment(f"{tmp_path}/{name}")
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", out)
    ran = experiment(f"{tmp_path}/{name}", "--semantics", "v9", "--json")
    found = json.loads(ran.stdout)
    assert (found["name"], found["semantics"]) == ("HalfAPage", ["v9"])
    assert found["tables"][0]["rows"] == [["v9", "Invalid argument", 2, 0]]


@pytest.mark.parametrize(
    ("source", "status", "text"),
    [
        ("", 2, "has no class 'Mine'"),
        ("Mine = 3", 2, "has no class 'Mine'"),
        ("class Mien: 0", 2, "has no class 'Mine': there is Mien"),
        ("class Mine: pass", 2, "set `question` to a sentence"),
        ("class Mine: question = 'Why?'", 2, "give it a method `run(self, lab)`"),
        (
            "class Mine:\n question = '?'\n semantics = 'v8'\n def run(self, lab): 0",
            2,
            "set `semantics` to a tuple of names",
        ),
        (
            "class Mine:\n question = '?'\n semantics = 'v1',\n def run(self, lab): 0",
            2,
            "unknown semantics 'v1'",
        ),
        ("x =", 1, "line 1: SyntaxError"),
        ("1 / 0", 1, "line 1: ZeroDivisionError: division by zero"),
        ("class Mine:\n def __init__(self): 1 / 0", 1, "line 2: ZeroDivisionError"),
    ],
)
def test_a_wrong_class_is_one_line(
    tmp_path: Path, source: str, status: int, text: str
) -> None:
    (tmp_path / "mine.py").write_text(source)
    ran = experiment(f"{tmp_path}/mine.py:Mine")
    assert (ran.returncode, ran.stdout) == (status, "")
    assert text in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_class_that_raises_has_its_own_traceback(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Mine:\n question = '?'\n def run(self, lab):\n  lab.say('a')\n  1 / 0\n"
    )
    ran = experiment(f"{path}:Mine")
    assert (ran.returncode, ran.stdout) == (1, "a\n")
    assert ran.stderr.splitlines()[1] == f'  File "{path}", line 5, in run'
    assert ran.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_file_without_a_class(tmp_path: Path) -> None:
    ran = experiment(f"{tmp_path}/mine.py")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "name the class, too" in ran.stderr


def test_the_list_for_programs() -> None:
    found = json.loads(experiment("--json").stdout)
    assert [one["name"] for one in found] == list(catalogue.NAMES)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [("5", 5, ""), ("", 0, ""), ("'the\\x1b[2J end'", 1, "the\\x1b[2J end\n")],
)
def test_a_class_that_exits_has_the_status_of_python(
    tmp_path: Path, code: str, status: int, said: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import sys\nclass Mine:\n question = '?'\n"
        f" def run(self, lab): sys.exit({code})\n"
    )
    ran = experiment(f"{path}:Mine")
    assert (ran.returncode, ran.stdout, ran.stderr) == (status, "", said)


def test_what_a_class_prints_does_not_spoil_the_json(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Mine:\n question = '?'\n def run(self, lab): print('x'); lab.say('y')\n"
    )
    ran = experiment(f"{path}:Mine", "--json")
    assert json.loads(ran.stdout)["lines"] == ["y"]
    assert ran.stderr == "x\n"


def test_a_row_that_does_not_fit_its_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Mine:\n question = '?'\n"
        " def run(self, lab): lab.table(('a', 'b'), [(1, 2), (3,)])\n"
    )
    last = experiment(f"{path}:Mine").stderr.splitlines()[-1]
    assert last == "ValueError: a row of 1 cells below 2: (3,)"
