"""The rules of a user's class, each read and checked once.

`rules` makes a table of the rules and their types from the annotations of `Semantics`.
The values are read from an instance, as a property or `__init__` may set them. They
must have exactly these types, as an instance of a subclass could run code of its own.
msgspec does not check that, nor would its errors list the values that a rule can have.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Literal,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from inaccfs import errnos
from inaccfs.errors import OptionError
from inaccfs.semantics.derived import Derived
from inaccfs.semantics.rules import (
    INVALIDATE,
    INVALIDATE_END,
    INVALIDATE_START,
    POPULATE,
    Plan,
    Semantics,
    refused,
)
from inaccfs.userfiles import in_a_line, type_name
from inaccfs.words import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

OLD_NAMES: Final = {
    "told": "reported",
    "held": "list_locked",
    "notifies_on_failure": "notifies_failures",
}
"""Former names of rules, and the present ones."""

# Attributes that are not rules.
_LABELS: Final = ("name", "source")
# The rules that are methods, each with arguments for a trial call.
_METHODS: Final[dict[str, tuple[tuple[object, ...], dict[str, object]]]] = {
    "check_size": ((0, 4096, 4096), {}),
    "check_fallocate": ((0, 0, 4096, 4096), {}),
    "plan": ((), {"punches": True}),
}
# The methods that system calls call.
_CHECKS: Final = ("check_size", "check_fallocate")
_BEFORE: Final = (None, INVALIDATE, INVALIDATE_START)
_AFTER: Final = (None, INVALIDATE, INVALIDATE_END, POPULATE)

# An exception of a user's class could return something else, or raise.
_errno: Final[Callable[[OSError], object]] = OSError.__dict__["errno"].__get__


@functools.cache
def rules() -> dict[str, Any]:
    """The name of each rule, and its type without the ClassVar around it."""
    hints = get_type_hints(Semantics)
    # The rules of `Semantics` itself, then those of its bases.
    names = [name for base in Semantics.__mro__ for name in _annotated(base)]
    return {
        name: get_args(hints[name])[0]
        for name in names
        if get_origin(hints[name]) is ClassVar and name not in _LABELS
    }


def _annotated(base: type) -> list[str]:
    """The names that *base* itself annotates."""
    return list(vars(base).get("__annotations__", ()))


class _Fixed(Semantics):
    """The rules of a user's class, each read once.

    A mount calls only the checks that the class defines itself, and no other code of
    the class. So the class can neither change a rule later nor raise unexpectedly.
    """

    def __init__(
        self,
        values: dict[str, object],
        plans: dict[bool, Plan],
        code: dict[str, object],
    ) -> None:
        vars(self).update(values)
        self._plans: Final = plans
        # The class's own methods, by name.
        self.code: Final = code

    def plan(self, *, punches: bool) -> Plan:
        return self._plans[punches]


def checked(found: type[Semantics], path: str) -> Semantics:
    """An instance of a user's class from the file *path*, with its rules fixed.

    Raises:
        OptionError: a rule is wrong.
    """
    name = found.__name__
    made = _asked(f"{name}: {name}()", found)
    if not isinstance(made, Semantics):
        raise OptionError(
            f"semantics {name}: {name}() does not return a {name}: check its __new__"
        )
    # __init__() may set a rule, too.
    own = vars(found) | vars(made)
    _check_names(found, own)
    values = {rule: _rule(made, rule, kind) for rule, kind in rules().items()}
    # The labels of the version that it is derived from are not its own.
    values["name"] = _label(made, "name") if "name" in own else name
    # A path need not be UTF-8, but this is sent as JSON.
    shown = os.fsencode(path).decode(errors="backslashreplace")
    values["source"] = _label(made, "source") if "source" in own else shown
    for method in _METHODS:
        _check_method(made, method)
    plans = {punches: _plan(made, punches=punches) for punches in (True, False)}
    code = {
        method: function
        for method in _METHODS
        if (function := _function(made, method)) is not getattr(Semantics, method)
    }
    for method in _CHECKS:
        if method in code:
            values[method] = _guarded(getattr(made, method), f"{name}.{method}")
    return _Fixed(values, plans, code)


def own_code(one: Semantics) -> dict[str, object]:
    """The methods that a user's class defines itself, by name; equal ones do the same.

    The rules that are values do not decide what such a method does.
    """
    if not isinstance(one, _Fixed):
        return {}
    # Compared by their code, as the same file may have been loaded twice.
    return {
        method: getattr(function, "__code__", function)
        for method, function in one.code.items()
    }


def _function(made: Semantics, method: str) -> object:
    """The function of a bound method."""
    found = getattr(made, method)
    return getattr(found, "__func__", found)


def _asked(called: str, ask: Callable[[], _T]) -> _T:
    """Call the user's code; its exceptions become `OptionError`."""
    try:
        return ask()
    except BaseException as exc:
        raise OptionError(f"semantics {called} raises {in_a_line(exc)}") from exc


def _guarded(check: Callable[..., None], called: str) -> Callable[..., None]:
    """*check*, but it raises only an OSError with an errno, or a bug (Exception).

    The message names only the type of the user's exception: its text is code of the
    user's, too.
    """

    @functools.wraps(check)
    def guarded(*args: object) -> None:
        try:
            check(*args)
        except OSError as exc:
            # A subclass may have its own errno.
            number = _errno(exc)
            # The kernel would drop the reply, and the caller would hang.
            if not errnos.is_errno(number):
                raise RuntimeError(
                    f"{called} raises {type_name(type(exc))} without an errno: use "
                    "refused(number)"
                ) from exc
            raise refused(number) from exc
        except Exception:
            raise
        except BaseException as exc:
            # SystemExit and its like would end the loop, and the mount with it.
            raise RuntimeError(f"{called} raises {type_name(type(exc))}") from exc

    return guarded


def _check_method(made: Semantics, method: str) -> None:
    """Refuse a method that does not take its arguments, or is not a plain def."""
    called = f"{type(made).__name__}.{method}"
    args, kwargs = _METHODS[method]
    code = getattr(made, method)
    if inspect.iscoroutinefunction(code) or inspect.isgeneratorfunction(code):
        raise OptionError(f"semantics {called}: it is called, and must be a plain def")
    try:
        inspect.signature(code).bind(*args, **kwargs)
    except (TypeError, ValueError) as exc:
        raise OptionError(f"semantics {called}: {exc}") from exc


def _check_names(found: type[Semantics], own: dict[str, object]) -> None:
    """Refuse names that look like a rule's: a mistyped rule would have no effect."""
    known = [*rules(), *_LABELS, *_METHODS]
    bases = found.__mro__[: found.__mro__.index(Semantics)]
    for name in [*own, *(name for base in bases for name in vars(base))]:
        if name in known or name.startswith("_"):
            continue
        if name == "events":
            reason = "it is made from plan: give that"
        elif name in vars(Derived):
            reason = "it follows from other rules: set those"
        elif new := OLD_NAMES.get(name):
            reason = f"rule {name!r} is called {new!r} now"
        elif near := nearest(name, known, 0.7):
            reason = f"no rule has that name: did you mean {near}?"
        else:
            continue
        raise OptionError(f"semantics {found.__name__}.{name}: {reason}")


def _label(made: Semantics, label: str) -> str:
    """The value of `name` or `source`."""
    called = f"{type(made).__name__}.{label}"
    value: object = _asked(called, lambda: getattr(made, label))
    if type(value) is not str:
        raise OptionError(f"semantics {called} is {value!r}: it must be text")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise OptionError(
            f"semantics {called} is {value!r}: it must be text, and UTF-8 has no "
            f"such character: {value[exc.start]!r}"
        ) from exc
    return value


def _rule(made: Semantics, rule: str, kind: Any) -> object:  # noqa: ANN401 - a type
    """The value of a rule."""
    name = type(made).__name__
    value: object = _asked(f"{name}.{rule}", lambda: getattr(made, rule, None))
    if value is None:
        raise OptionError(
            f"semantics {name} has no rule {rule!r}: give it, or derive from a "
            "version that does, such as inaccfs.semantics.V8"
        )
    called = f"semantics {name}.{rule}"
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        if value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise OptionError(f"{called} is {value!r}: it can be {choices}")
        # The text itself, and not an equal one of a subclass of str.
        return allowed[allowed.index(value)]
    if type(value) is not kind:
        wanted = "True or False" if kind is bool else "a whole number"
        raise OptionError(f"{called} is {value!r}: it must be {wanted}")
    if rule.endswith("_errno"):
        _check_errno(called, value)
    elif rule == "magic" and value not in range(1 << 32):
        raise OptionError(f"{called} is {value!r}: it must have 32 bits")
    return value


def _check_errno(called: str, value: object) -> None:
    if not errnos.is_errno(value):
        raise OptionError(
            f"{called} is {value!r}: it must be an errno, such as errno.EINVAL"
        )
    if value == errno.ENOSYS:
        raise OptionError(
            f"{called} is ENOSYS, after which the kernel would never ask again: use "
            "another, such as errno.EOPNOTSUPP"
        )


def _plan(made: Semantics, *, punches: bool) -> Plan:
    called = f"{type(made).__name__}.plan"
    plan: object = _asked(called, lambda: made.plan(punches=punches))
    if not isinstance(plan, Plan):
        raise OptionError(f"semantics {called} returns {plan!r}: it must be a Plan")
    for event, allowed in ((plan.before, _BEFORE), (plan.after, _AFTER)):
        if event not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise OptionError(
                f"semantics {called}: no such event there: {event!r}, only {choices}"
            )
    return plan
