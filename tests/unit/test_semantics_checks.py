"""The values of a user's rules, which are checked before the mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inaccfs.semantics import V8, checking, load
from inaccfs.semantics.rules import INVALIDATE
from tests.unit.user_rules import PAGE, complaint, complaint_of, written

if TYPE_CHECKING:
    from pathlib import Path


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
