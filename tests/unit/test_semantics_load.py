"""`--semantics`: names of versions, and files with a user's classes."""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

import pytest

from inaccfs.semantics import V8, VERSIONS, Plan, Semantics, checking, load
from inaccfs.semantics.rules import INVALIDATE
from tests.unit.user_rules import IMPORTS, PAGE, complaint, written

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing


# --- names ------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_every_version_has_a_name_that_loads_it(version: type[Semantics]) -> None:
    assert type(load.load(version.name)) is version


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("v88", "v8"),
        ("V9", "v9"),
        ("guestmemfd", "guest_memfd"),
        ("guest_memfd:mmpa", "guest_memfd:mmap"),
        ("blind", "bind"),
    ],
)
def test_an_unknown_name_is_reported_with_the_nearest_and_the_list(
    wanted: str, near: str
) -> None:
    message = complaint(wanted)
    assert message.startswith(f"unknown semantics {wanted!r}: did you mean {near}? ")
    assert all(version.name in message for version in VERSIONS)
    assert "FILE.py:CLASS" in message


@pytest.mark.parametrize("wanted", ["", "mesi", "mine.pyc:Mine", ":", "a:b:c", "\n"])
def test_a_name_like_no_other_is_reported_with_the_list(wanted: str) -> None:
    message = complaint(wanted)
    assert "did you mean" not in message
    assert "v8-as-posted" in message


# --- files ------------------------------------------------------------------------


def test_twenty_lines_are_enough_for_v8_but_before(
    tmp_path: Path, backing: Backing
) -> None:
    """They are v8 except for that rule, with their own name."""
    text = """\
    from inaccfs.semantics import V8

    class Before(V8):
        \"\"\"v8, but invalidate before.\"\"\"

        order = "before"
    """
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(text))
    assert len(text.splitlines()) < 20

    made = load.load(f"{path}:Before")

    assert made.plan(punches=True) == Plan(before=INVALIDATE)
    assert made.name == "Before"
    assert made.source == str(path)
    assert made.order == "before"
    differing = {
        rule for rule in checking.rules() if getattr(made, rule) != getattr(V8, rule)
    }
    assert differing == {"order"}
    assert os.listdir(tmp_path) == ["mine.py"]


def test_a_class_may_give_itself_a_name_and_a_source(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        class Mine(V9):
            name = "ours, draft 3"
            source = "a talk"
        """,
    )
    made = load.load(f"{path}:Mine")
    assert (made.name, made.source) == ("ours, draft 3", "a talk")


def test_a_path_that_is_not_utf8_can_be_printed(tmp_path: Path) -> None:
    directory = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    os.mkdir(directory)
    path = tmp_path / directory / "mine.py"
    path.write_text(IMPORTS + "class Mine(V8): pass\n")
    made = load.load(f"{path}:Mine")
    assert made.source == f"{tmp_path}/\\xff/mine.py"


def test_an_imported_version_keeps_its_name(tmp_path: Path) -> None:
    made = load.load(written(tmp_path, "pass") + ":V9")
    assert (made.name, made.source) == ("v9", load.load("v9").source)


def test_a_class_may_be_derived_from_another_of_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        class Base(V8):
            unit = "bytes"
            _helper = 5

            def look(self):
                return self._helper

        class Mine(Base):
            order = "bracket"
        """,
    )
    made = load.load(f"{path}:Mine")
    assert (made.unit, made.order, made.name) == ("bytes", "bracket", "Mine")


def test_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    written(tmp_path, "class Mine(V8): pass")
    for _ in range(2):
        load.load(f"{tmp_path}/mine.py:Mine")
    assert os.listdir(tmp_path) == ["mine.py"]


def test_each_load_sees_the_file_as_it_is(tmp_path: Path) -> None:
    """This is so even if it was edited within the resolution of its mtime."""
    for order in ("before", "bracket", "after"):
        wanted = written(tmp_path, f"class Mine(V8): order = {order!r}")
        assert load.load(f"{wanted}:Mine").order == order


@pytest.mark.parametrize("frozen", [True, False])
def test_a_dataclass_finds_its_module(tmp_path: Path, frozen: bool) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from inaccfs.semantics import V8\n"
        f"@dataclass(frozen={frozen})\n"
        "class Mine(V8):\n"
        "    _seen: int = 0\n"
        "    def check_size(self, *_): raise SystemExit\n"
    )
    made = load.load(f"{path}:Mine")
    with pytest.raises(RuntimeError):
        made.check_size(0, 0, PAGE)


def test_a_path_may_have_a_colon(tmp_path: Path) -> None:
    directory = tmp_path / "a:b"
    directory.mkdir()
    assert load.load(written(directory, "class Mine(V8): pass") + ":Mine").name


def test_a_file_without_its_class_is_refused_with_a_hint(tmp_path: Path) -> None:
    wanted = written(tmp_path, "class Mine(V8): pass")
    assert complaint(wanted) == (
        f"semantics {wanted}: name the class, too: {wanted}:Mine"
    )
    empty = written(tmp_path, "pass", "empty.py")
    assert complaint(empty).endswith(f"{empty}:CLASS")


def test_a_missing_class_is_reported_with_those_that_exist(tmp_path: Path) -> None:
    wanted = written(tmp_path, "class Mine(V8): pass\nclass Yours(V8): pass")
    for name in ("Thine", "", "Mine.Yours"):
        assert complaint(f"{wanted}:{name}") == (
            f"semantics {wanted} has no class {name!r}: there is Mine, Yours"
        )
    empty = written(tmp_path, "pass", "empty.py")
    assert complaint(f"{empty}:Mine").endswith("has no class 'Mine'")


@pytest.mark.parametrize("name", ["errno", "Mine", "value"])
def test_a_class_that_is_not_semantics_is_refused(tmp_path: Path, name: str) -> None:
    wanted = written(tmp_path, "class Mine:\n    order = 'before'\nvalue = 5")
    message = complaint(f"{wanted}:{name}")
    assert message.startswith(f"semantics {wanted}:{name} is not derived from ")
    assert "V8" in message


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "no such file"),
        ("FIFO", "not a regular file"),
        ("directory", "not a regular file"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ":Mine"])
def test_a_file_that_cannot_be_read_is_reported(
    tmp_path: Path, kind: str, reason: str, suffix: str
) -> None:
    """The loader does not wait for a FIFO."""
    path = tmp_path / "mine.py"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    assert complaint(f"{path}{suffix}") == f"semantics {path}: {reason}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("class (V8)", "line 4: SyntaxError: ", id="syntax"),
        pytest.param("x = 'unclosed", "line 4: SyntaxError: ", id="string"),
        pytest.param("import nowhere_at_all", "line 4: ModuleNotFoundError", id="none"),
        pytest.param("1 / 0", "line 4: ZeroDivisionError: division", id="raises"),
        pytest.param("V8.nothing", "line 4: AttributeError", id="no attribute"),
        pytest.param("raise ValueError", "line 4: ValueError", id="no words"),
        pytest.param("raise ValueError('a\\nb')", "line 4: ValueError: a", id="lines"),
        pytest.param("\nimport sys\nsys.exit(3)", "line 6: SystemExit: 3", id="exit"),
        pytest.param(
            "def one():\n    int('x')\none()", "line 5: ValueError", id="in a function"
        ),
        pytest.param("x = 1\x00", "source code", id="NUL"),
    ],
)
def test_a_file_that_raises_is_reported_with_its_line(
    tmp_path: Path, text: str, reason: str
) -> None:
    wanted = written(tmp_path, text)
    message = complaint(f"{wanted}:Mine")
    assert message.startswith(f"semantics {wanted}: ")
    assert reason in message


def test_a_file_that_is_not_text_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes(b"x = '\xff'\n")
    assert "SyntaxError" in complaint(f"{path}:Mine")


def test_the_line_of_another_file_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    wanted = written(tmp_path, "compile('\\n' * 9 + 'class (', 'other.py', 'exec')")
    assert "line 4: SyntaxError" in complaint(f"{wanted}:Mine")
