"""Code in a user's rules: its exceptions, and methods that are checked."""

from __future__ import annotations

import errno
import textwrap
from typing import TYPE_CHECKING

import pytest

from inaccfs import cli
from inaccfs.errors import OptionError
from inaccfs.semantics import VERSIONS, Semantics, load
from tests.unit.fakes import refused
from tests.unit.user_rules import PAGE, complaint_of, written

if TYPE_CHECKING:
    from pathlib import Path


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
                "__call__",
                "__getattribute__",
                "__init__",
                "__new__",
                "mro",
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
