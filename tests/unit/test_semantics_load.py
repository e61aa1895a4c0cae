"""`--semantics`: names and a user's classes, which are checked before the mount."""

from __future__ import annotations

import errno
import os
import textwrap
from typing import TYPE_CHECKING

import pytest

from inaccfs import cli
from inaccfs.errors import OptionError
from inaccfs.semantics import V8, VERSIONS, Plan, Semantics, checking, load
from inaccfs.semantics.rules import INVALIDATE
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing

PAGE = 4096
IMPORTS = """\
import errno
from inaccfs.semantics import *
from inaccfs.semantics.rules import *
"""


def written(directory: Path, text: str, name: str = "mine.py") -> str:
    """The path of a user's file with *text*."""
    path = directory / name
    path.write_text(IMPORTS + textwrap.dedent(text))
    return str(path)


def complaint(wanted: str) -> str:
    """The loader's error message, which is one line."""
    with pytest.raises(OptionError) as caught:
        load.load(wanted)
    message = str(caught.value)
    assert message
    assert message.isprintable(), message
    return message


def complaint_of(directory: Path, body: str, base: str = "V8") -> str:
    """The error message for a class with this body."""
    body = textwrap.indent(textwrap.dedent(body).strip() or "pass", "    ")
    wanted = written(directory, f"class Mine({base}):\n{body}\n")
    return complaint(f"{wanted}:Mine")


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


# --- a user's code in any place -----------------------------------------------------


HOSTILE = """
class Untold(BaseException):
    def __str__(self):
        raise KeyError

class Meta(type):
    def METHOD(cls, *args):
        raise Untold

class Descriptor:
    def __get__(self, *_):
        raise Untold("\x1b[31m")

class Proxy:
    @property
    def __class__(self):
        raise Untold

class Odd:
    def __eq__(self, other):
        raise Untold
    def __repr__(self):
        raise SystemExit(3)
    __hash__ = None
"""


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"class Mine(V8, metaclass=Meta): pass  # {method}"
            for method in (
                *("__call__", "__getattribute__", "__init__", "__new__", "mro"),
            )
        ),
        "def __getattr__(name): raise Untold",
        "Mine = Proxy()",
        "class Mine(V8):\n    def __getattribute__(self, name): raise Untold",
        "class Mine(V8):\n    def __init__(self): raise Untold",
        "class Mine(V8):\n    def __new__(cls): return 5",
        "class Mine(V8):\n    def __new__(cls): raise GeneratorExit",
        "class Mine(V8):\n    order = property(lambda self: exit(1))",
        "class Mine(V8):\n    order = Descriptor()",
        "class Mine(V8):\n    order = Odd()",
        "class Mine(V8):\n    read_errno = Odd()",
        "class Mine(V8):\n    check_size = Descriptor()",
        "class Mine(V8):\n    check_size = Odd()",
        "class Mine(V8):\n    plan = lambda self, punches: Odd()",
        "class Mine(V8):\n    plan = lambda self, punches: self.plan(punches=punches)",
        "class Mine(V8):\n    __dict__ = property(lambda self: 1 / 0)",
        "class B(V8):\n    def __init_subclass__(c): raise Untold\nclass Mine(B): pass",
        "raise KeyboardInterrupt",
        "raise SystemExit('\\x1b[31m\\nb')",
        "raise Untold",
        "def f(): f()\nf()",
        "class Mine(V8): locals()['ordre\\x1b'] = 1",
    ],
)
def test_any_exception_of_a_users_code_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    method = text.partition("# ")[2] or "unused"
    path = written(tmp_path, HOSTILE.replace("METHOD", method) + text)
    with pytest.raises(OptionError):
        load.load(f"{path}:Mine")
    assert cli.main(["semantics", f"{path}:Mine"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("inaccfs: semantics ")
    assert err.removesuffix("\n").isprintable()


def test_a_refusal_is_the_errno_that_it_really_has(tmp_path: Path) -> None:
    """Attributes of an exception may be code that would run in the daemon's loop."""
    body = """
    class Refusal(OSError):
        @property
        def errno(self):
            raise SystemExit

    class Mine(V8):
        def check_size(self, current, new, page_size):
            raise Refusal(errno.EBUSY, "no")
    """
    made = load.load(f"{written(tmp_path, body)}:Mine")
    with pytest.raises(OSError, match="busy") as caught:
        made.check_size(0, 4096, 4096)
    assert (type(caught.value), caught.value.errno) == (OSError, errno.EBUSY)


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


# --- rules ------------------------------------------------------------------------


def test_a_class_of_no_version_must_give_every_rule(tmp_path: Path) -> None:
    message = complaint_of(tmp_path, "order = 'after'", "Semantics")
    assert message.startswith("semantics Mine has no rule 'magic': give it, or derive ")


@pytest.mark.parametrize("rule", checking.rules())
def test_a_missing_rule_is_named(tmp_path: Path, rule: str) -> None:
    body = "\n".join(f"{name} = V8.{name}" for name in checking.rules() if name != rule)
    message = complaint_of(tmp_path, body, "Semantics")
    assert message.startswith(f"semantics Mine has no rule {rule!r}: ")


def test_a_class_of_no_version_with_every_rule_is_one(tmp_path: Path) -> None:
    body = "\n".join(f"    {name} = V8.{name}" for name in checking.rules())
    wanted = written(tmp_path, f"class Mine(Semantics):\n{body}\n")
    assert load.load(f"{wanted}:Mine").events == [INVALIDATE]


@pytest.mark.parametrize(("old", "new"), checking.OLD_NAMES.items())
@pytest.mark.parametrize(
    "body", ["{old} = 'x'", "def __init__(self): self.{old} = 'x'"]
)
def test_an_old_name_of_a_rule_is_refused_with_the_new_one(
    tmp_path: Path, old: str, new: str, body: str
) -> None:
    assert new in checking.rules()
    assert complaint_of(tmp_path, body.format(old=old)) == (
        f"semantics Mine.{old}: rule {old!r} is called {new!r} now"
    )


def test_an_old_name_is_found_in_a_base_too(tmp_path: Path) -> None:
    text = "class Base(V8): told = 'clipped'\nclass Mine(Base): pass\n"
    assert "rule 'told' is called 'reported' now" in (
        complaint(f"{written(tmp_path, text)}:Mine")
    )


_WRONG: dict[type, tuple[str, ...]] = {
    bool: ("1", "0", "'yes'", "None.__class__"),
    int: ("True", "1.0", "'22'", "'EINVAL'"),
}


@pytest.mark.parametrize("rule", checking.rules())
def test_a_wrong_value_is_reported_with_the_allowed_ones(
    tmp_path: Path, rule: str
) -> None:
    kind = checking.rules()[rule]
    for value in _WRONG.get(kind, ("'nonsense'", "5", "True", "['after']", "str")):
        message = complaint_of(tmp_path, f"{rule} = {value}")
        assert message.startswith(f"semantics Mine.{rule} is "), message
        if kind is bool:
            assert message.endswith("it must be True or False")
        elif kind is int:
            assert message.endswith("it must be a whole number")
        else:
            assert repr(getattr(V8, rule)) in message
            assert " or " in message


@pytest.mark.parametrize("rule", ["read_errno", "unbound_errno"])
@pytest.mark.parametrize("value", ["0", "-errno.EINVAL", "512", "1 << 40"])
def test_an_errno_must_be_one(tmp_path: Path, rule: str, value: str) -> None:
    """The kernel refuses a reply with any other number, and the caller would hang."""
    message = complaint_of(tmp_path, f"{rule} = {value}")
    assert message.startswith(f"semantics Mine.{rule} is ")
    assert message.endswith("it must be an errno, such as errno.EINVAL")


@pytest.mark.parametrize("rule", ["read_errno", "unbound_errno"])
def test_enosys_is_no_answer(tmp_path: Path, rule: str) -> None:
    message = complaint_of(tmp_path, f"{rule} = errno.ENOSYS")
    assert message.startswith(
        f"semantics Mine.{rule} is ENOSYS, after which the kernel"
    )


@pytest.mark.parametrize("value", ["-1", "1 << 32"])
def test_a_magic_must_be_one(tmp_path: Path, value: str) -> None:
    assert complaint_of(tmp_path, f"magic = {value}").endswith("it must have 32 bits")


@pytest.mark.parametrize(("word", "value"), [("name", "5"), ("source", "None")])
def test_name_and_source_must_be_text(tmp_path: Path, word: str, value: str) -> None:
    assert complaint_of(tmp_path, f"{word} = {value}") == (
        f"semantics Mine.{word} is {value}: it must be text"
    )


@pytest.mark.parametrize("word", ["name", "source"])
def test_name_and_source_must_be_utf8(tmp_path: Path, word: str) -> None:
    message = complaint_of(tmp_path, f"{word} = 'a\\udcff'")
    assert message.startswith(
        f"semantics Mine.{word} is 'a\\udcff': it must be text, and"
    )


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("read_errno = 5000", "Mine.read_errno is 5000: it must be an errno"),
        ("order = 'befor'", "Mine.order is 'befor': it can be"),
        ("exclusive = 1", "Mine.exclusive is 1: it must be True or False"),
        ("source = None", "Mine.source is None: it must be text"),
        ("oder = 'before'", "Mine.oder: no rule has that name: did you mean order?"),
        ("check_size = 5", "Mine.check_size"),
    ],
)
def test_rules_set_in_init_are_checked(
    tmp_path: Path, statement: str, expected: str
) -> None:
    body = f"def __init__(self):\n    self.{statement}"
    assert complaint_of(tmp_path, body).startswith(f"semantics {expected}")


def test_rules_set_in_init_count(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        class Mine(V8):
            def __init__(self):
                self.order = "before"
                self.name = "ours"
                self.check_size = self._check_size

            def _check_size(self, *_):
                raise SystemExit
        """,
    )
    made = load.load(f"{path}:Mine")
    assert (made.order, made.name, made.events) == ("before", "ours", [INVALIDATE])
    with pytest.raises(RuntimeError):
        made.check_size(0, 0, PAGE)


def test_a_rule_that_raises_is_reported(tmp_path: Path) -> None:
    message = complaint_of(tmp_path, "@property\ndef order(self): raise SystemExit(1)")
    assert message == "semantics Mine.order raises SystemExit: 1"


def test_an_equal_value_of_another_type_is_not_kept(tmp_path: Path) -> None:
    wanted = written(
        tmp_path,
        """
        class Text(str):
            pass

        class Mine(V8):
            order = Text("before")
        """,
    )
    assert type(load.load(f"{wanted}:Mine").order) is str


def test_events_are_not_given(tmp_path: Path) -> None:
    assert complaint_of(tmp_path, "events = []") == (
        "semantics Mine.events: it is made from plan: give that"
    )


def test_what_follows_from_rules_is_not_given(tmp_path: Path) -> None:
    assert complaint_of(tmp_path, "mappable = True") == (
        "semantics Mine.mappable: it follows from other rules: set those"
    )


def test_name_and_source_are_read_once(tmp_path: Path) -> None:
    """A rule that is code, but not a check, does not run while the mount exists."""
    wanted = written(
        tmp_path,
        """
        class Mine(V8):
            _asked = {"order": 0, True: 0, False: 0}

            def _once(self, what):
                self._asked[what] += 1
                if self._asked[what] > 1:
                    raise SystemExit

            @property
            def order(self):
                self._once("order")
                return "before"

            def plan(self, *, punches):
                self._once(punches)
                return Plan(before=INVALIDATE)

            def check_size(self, current, new, page_size):
                self.unit = "nonsense"
        """,
    )
    made = load.load(f"{wanted}:Mine")
    made.check_size(0, 0, PAGE)
    for _ in range(2):
        assert (made.order, made.unit) == ("before", "pages")
        assert made.events == [INVALIDATE]
        assert made.plan(punches=True) == made.plan(punches=False)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("Order", "order"),
        ("notify", "notifies"),
        ("units", "unit"),
        ("reference", "references"),
        ("exclusiv", "exclusive"),
        ("keep_size_requird", "keep_size_required"),
        ("aligned_", "aligned"),
    ],
)
def test_a_misspelt_rule_is_reported(tmp_path: Path, wrong: str, right: str) -> None:
    assert complaint_of(tmp_path, f"{wrong} = 'before'") == (
        f"semantics Mine.{wrong}: no rule has that name: did you mean {right}?"
    )


@pytest.mark.parametrize(
    ("wrong", "right"), [("check_sise", "check_size"), ("plans", "plan")]
)
def test_a_misspelt_method_is_reported(tmp_path: Path, wrong: str, right: str) -> None:
    message = complaint_of(tmp_path, f"def {wrong}(self, *args, **kwargs): pass")
    assert message.endswith(f"did you mean {right}?")


def test_a_misspelt_rule_of_a_base_is_reported(tmp_path: Path) -> None:
    wanted = written(
        tmp_path,
        """
        class Base(V8):
            ordre = "before"

        class Mine(Base):
            pass
        """,
    )
    assert "did you mean order?" in complaint(f"{wanted}:Mine")


# --- rules that are code ------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "header"),
    [
        ("check_size", "def check_size(self, new): pass"),
        ("check_size", "def check_size(): pass"),
        ("check_size", "def check_size(self, current, new, page, more): pass"),
        ("check_fallocate", "def check_fallocate(self, mode, offset): pass"),
        ("check_fallocate", "check_fallocate = 5"),
        ("check_fallocate", "check_fallocate = None"),
        ("plan", "def plan(self): pass"),
        ("plan", "def plan(self, punch): pass"),
        ("plan", "plan = Plan()"),
        ("check_size", "async def check_size(self, current, new, page): pass"),
        ("check_size", "def check_size(self, current, new, page): yield"),
    ],
)
def test_a_method_that_cannot_be_called_is_reported(
    tmp_path: Path, method: str, header: str
) -> None:
    assert complaint_of(tmp_path, header).startswith(f"semantics Mine.{method}")


@pytest.mark.parametrize(
    "method",
    [
        "def check_size(self, current, new, page_size): pass",
        "def check_size(self, *args): pass",
        "def check_size(self, a, b, c, d=4): pass",
        "@staticmethod\ndef check_size(current, new, page_size): pass",
        "@classmethod\ndef check_size(cls, current, new, page_size): pass",
        "check_size = lambda self, a, b, c: None",
        "check_size = print",
    ],
)
def test_a_method_that_can_be_called_is_taken(tmp_path: Path, method: str) -> None:
    body = textwrap.indent(method, "    ")
    wanted = written(tmp_path, f"class Mine(V8):\n{body}\n")
    load.load(f"{wanted}:Mine").check_size(PAGE, 0, PAGE)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise ValueError('a\\nb')", ".plan raises ValueError: a"),
        ("raise SystemExit(1)", ".plan raises SystemExit: 1"),
        ("return None", ".plan returns None: it must be a Plan"),
        ("return ('INVALIDATE', None)", ".plan returns ('INVALIDATE', None): it must"),
        ("return Plan", ".plan returns <class"),
        ("return Plan(before='INVALIDATE_END')", ": no such event there: 'INVALIDATE_"),
        ("return Plan(after='INVALIDATE_START')", ": no such event there: "),
        ("return Plan(before=POPULATE)", ": no such event there: 'POPULATE'"),
        ("return Plan(after=5)", ": no such event there: 5"),
        ("return Plan(after=['INVALIDATE'])", ": no such event there: ["),
        ("return None if punches else Plan()", ".plan returns None"),
        ("return Plan() if punches else None", ".plan returns None"),
    ],
)
def test_a_plan_that_is_not_one_is_reported(
    tmp_path: Path, body: str, expected: str
) -> None:
    found = complaint_of(tmp_path, f"def plan(self, *, punches):\n    {body}")
    assert found.startswith("semantics Mine.plan")
    assert expected in found


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('no')", "raises ValueError: no"),
        ("raise SystemExit", "raises SystemExit"),
        ("self.nothing", "raises AttributeError"),
    ],
)
def test_a_class_that_cannot_be_instantiated_is_reported(
    tmp_path: Path, body: str, reason: str
) -> None:
    message = complaint_of(tmp_path, f"def __init__(self):\n    {body}")
    assert message.startswith(f"semantics Mine: Mine() {reason}")


def test_a_class_that_needs_arguments_is_reported(tmp_path: Path) -> None:
    message = complaint_of(tmp_path, "def __init__(self, what): pass")
    assert "raises TypeError" in message


def rule_that_raises(directory: Path, what: str) -> Semantics:
    wanted = written(
        directory,
        f"""
        class Mine(V8):
            def check_fallocate(self, mode, offset, length, page_size):
                raise {what}

            def check_size(self, current, new, page_size):
                raise {what}
        """,
    )
    return load.load(f"{wanted}:Mine")


def test_the_errno_of_a_rule_is_the_callers(tmp_path: Path) -> None:
    made = rule_that_raises(tmp_path, "refused(errno.ENOLCK)")
    with refused(errno.ENOLCK):
        made.check_fallocate(0, 0, PAGE, PAGE)
    with refused(errno.ENOLCK):
        made.check_size(0, PAGE, PAGE)


@pytest.mark.parametrize(
    "what",
    [
        "SystemExit(0)",
        "KeyboardInterrupt",
        "GeneratorExit",
        "BaseException('all')",
        "OSError",
        "OSError('EINVAL')",
        "OSError(-22, 'as the kernel has it')",
        "OSError(0, '')",
        "OSError(512, 'ERESTARTSYS')",
        "OSError('EINVAL', 'x')",
        "OSError(22.0, 'equals one, and does not fit into a reply')",
        "OSError(True, 'x')",
        pytest.param(
            "type('Mute', (OSError,), {'__repr__': __import__('sys').exit})()",
            id="OSError whose repr() raises",
        ),
        pytest.param(
            "type('Mute', (BaseException,), {'__str__': __import__('sys').exit})()",
            id="BaseException whose str() raises",
        ),
    ],
)
def test_an_exception_that_would_end_the_daemon_is_a_bug(
    tmp_path: Path, what: str
) -> None:
    """Also exceptions that would end the loop, and errnos that the kernel refuses."""
    made = rule_that_raises(tmp_path, what)
    with pytest.raises(RuntimeError, match=r"Mine\.check_fallocate raises") as caught:
        made.check_fallocate(0, 0, PAGE, PAGE)
    assert caught.value.__cause__ is not None
    with pytest.raises(RuntimeError, match=r"Mine\.check_size raises"):
        made.check_size(0, PAGE, PAGE)


def test_an_ordinary_exception_is_passed_on(tmp_path: Path) -> None:
    made = rule_that_raises(tmp_path, "ZeroDivisionError('mine')")
    with pytest.raises(ZeroDivisionError, match="mine"):
        made.check_size(0, PAGE, PAGE)


def test_the_rules_of_a_version_are_called_without_a_detour() -> None:
    """So the choice of rules costs nothing."""
    for version in VERSIONS:
        assert vars(load.load(version.name)) == {}
