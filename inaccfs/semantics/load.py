"""From the words of `--semantics` to rules that have been checked.

What is wrong with rules of one's own is told here, before there is a mount, and not by
the first punch.
"""

from __future__ import annotations

import difflib
import errno
import functools
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
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
from inaccfs.semantics.rules import (
    INVALIDATE,
    INVALIDATE_END,
    INVALIDATE_START,
    POPULATE,
    Plan,
    Semantics,
    refused,
)
from inaccfs.semantics.versions import VERSIONS
from inaccfs.words import quoted

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

# Not rules: what people call them.
_WORDS: Final = ("name", "source")
OLD_NAMES: Final = {
    "told": "reported",
    "held": "list_locked",
    "notifies_on_failure": "notifies_failures",
}
"""What rules were called before, and are called now."""
# With arguments such as they are called with.
_METHODS: Final[dict[str, tuple[tuple[object, ...], dict[str, object]]]] = {
    "check_size": ((0, 4096, 4096), {}),
    "check_fallocate": ((0, 0, 4096, 4096), {}),
    "plan": ((), {"punches": True}),
}
# Those of them that are called while the mount is there.
_CHECKS: Final = ("check_size", "check_fallocate")
_BEFORE: Final = (None, INVALIDATE, INVALIDATE_START)
_AFTER: Final = (None, INVALIDATE, INVALIDATE_END, POPULATE)


def rules() -> dict[str, Any]:
    """The name of each rule, and its type without the ClassVar around it."""
    return {
        name: get_args(hint)[0]
        for name, hint in get_type_hints(Semantics).items()
        if get_origin(hint) is ClassVar and name not in _WORDS
    }


def split(wanted: str) -> tuple[str, str] | None:
    """The two parts of FILE.py:CLASS; None if it is the name of a version."""
    path, _, name = wanted.rpartition(":")
    return (path, name) if path.endswith(".py") else None


def absolute(wanted: str) -> str:
    """The same for a process with another working directory."""
    if (parts := split(wanted)) is None:
        return wanted
    path, name = parts
    return f"{os.path.abspath(path)}:{name}"


def load(wanted: str) -> Semantics:
    """The semantics of a name, or of FILE.py:CLASS.

    Raises:
        OptionError: there is none of that name, or a rule of it is wrong.
    """
    check_name(wanted)
    for version in VERSIONS:
        if version.name == wanted:
            return version()
    return _own(wanted, *(split(wanted) or (wanted, None)))


def check_name(wanted: str) -> None:
    """Check all that can be checked of it without running a file.

    Raises:
        OptionError: it is neither the name of a version nor that of a file.
    """
    if wanted.endswith(".py") or split(wanted) is not None:
        return
    names = [version.name for version in VERSIONS]
    if wanted in names:
        return
    near = difflib.get_close_matches(wanted.lower(), names, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise OptionError(
        f"unknown semantics {quoted(wanted)}: {hint}There are {', '.join(names)}, and "
        "your own as FILE.py:CLASS"
    )


def _own(wanted: str, path: str, name: str | None) -> Semantics:
    """The semantics of the class *name* in the file *path*, whatever that does.

    Each look at it may run code of somebody's own: of a module, a class, a metaclass, a
    descriptor or an exception. What is not foreseen ends here, Ctrl-C included, which
    tells the line that did not come to an end. What ends the process, as os._exit()
    does, cannot be caught.
    """
    try:
        return _checked(_find(_module(path), path, name), path)
    except OptionError:
        raise
    except BaseException as exc:
        raise OptionError(f"semantics {wanted}: {_at(exc, path)}{_told(exc)}") from exc


def _module(path: str) -> ModuleType:
    """What the file defines. It is run; and leaves no __pycache__ beside it."""
    file = Path(path)
    try:
        # A FIFO would keep us waiting.
        if not file.is_file():
            there = file.exists()
            raise FileNotFoundError("no regular file" if there else "no such file")
        source = file.read_bytes()
    except OSError as exc:
        raise OptionError(f"semantics {path}: {exc.strerror or exc}") from exc
    module = ModuleType(f"inaccfs_semantics_{file.stem}")
    module.__file__ = path
    # Dataclasses, for one, look their module up.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except BaseException as exc:
        raise OptionError(f"semantics {path}: {_at(exc, path)}{_told(exc)}") from exc
    return module


def _at(exc: BaseException, path: str) -> str:
    """The line of a file that raises; nothing if that is not known."""
    lines = [
        at.lineno
        for at in traceback.extract_tb(exc.__traceback__)
        if at.filename == path
    ]
    if isinstance(exc, SyntaxError) and exc.filename == path:
        lines = [exc.lineno]
    return f"line {lines[-1]}: " if lines and lines[-1] else ""


def _told(exc: BaseException) -> str:
    """An exception in one line."""
    name = _name(type(exc))
    try:
        text = exc.msg if isinstance(exc, SyntaxError) else str(exc)
        first = next(iter(text.splitlines()), "")
    except BaseException:
        return name
    return f"{name}: {first}" if first else name


# What an exception of somebody's own may tell in another way, or not at all.
_name: Final[Callable[[type], str]] = type.__dict__["__name__"].__get__
_errno: Final[Callable[[OSError], object]] = OSError.__dict__["errno"].__get__


def _classes(module: ModuleType) -> list[str]:
    """The names of the semantics that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Semantics)
        and value.__module__ == module.__name__
    ]


def _find(module: ModuleType, path: str, name: str | None) -> type[Semantics]:
    if name is None:
        there_is = (_classes(module) or ["CLASS"])[0]
        raise OptionError(f"semantics {path}: name the class, too: {path}:{there_is}")
    found = getattr(module, name, None)
    if isinstance(found, type) and issubclass(found, Semantics):
        return found
    if found is not None:
        raise OptionError(
            f"semantics {path}:{name} is not derived from inaccfs.semantics.Semantics, "
            "nor from a version such as inaccfs.semantics.V8"
        )
    there = ", ".join(_classes(module))
    raise OptionError(
        f"semantics {path} has no class {name!r}"
        + (f": there is {there}" if there else "")
    )


class _Pinned(Semantics):
    """What a class of somebody's own has answered, once.

    While the mount is there its code is called for the checks that are its own, and
    for nothing else: what it says of itself can neither change nor raise.
    """

    def __init__(
        self,
        said: dict[str, object],
        plans: dict[bool, Plan],
        code: dict[str, object],
    ) -> None:
        vars(self).update(said)
        self._plans: Final = plans
        # Its own methods, by the name of the rule that they are.
        self.code: Final = code

    def plan(self, *, punches: bool) -> Plan:
        return self._plans[punches]


def _checked(found: type[Semantics], path: str) -> Semantics:
    """The semantics of a class of somebody's own."""
    name = found.__name__
    made = _asked(f"{name}: {name}()", found)
    if not isinstance(made, Semantics):
        raise OptionError(f"semantics {name}: {name}() makes something else of it")
    types = rules()
    # A rule may be set by __init__(), too.
    own = vars(found) | vars(made)
    _check_names(found, own, [*types, *_WORDS, *_METHODS])
    said = {rule: _rule(made, rule, kind) for rule, kind in types.items()}
    # Not those of the version which it is derived from.
    said["name"] = _word(made, "name") if "name" in own else name
    # A path need not be UTF-8, and this is sent.
    shown = os.fsencode(path).decode(errors="backslashreplace")
    said["source"] = _word(made, "source") if "source" in own else shown
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
            said[method] = _guarded(getattr(made, method), f"{name}.{method}")
    return _Pinned(said, plans, code)


def _function(made: Semantics, method: str) -> object:
    """What is called, without the object that it is called for."""
    found = getattr(made, method)
    return getattr(found, "__func__", found)


def own_code(one: Semantics) -> dict[str, object]:
    """The rules that are code of its own, by name; what is equal does the same.

    The rules that are values decide nothing there.
    """
    if not isinstance(one, _Pinned):
        return {}
    # The same file may have been loaded twice.
    return {
        method: getattr(function, "__code__", function)
        for method, function in one.code.items()
    }


def _asked(called: str, ask: Callable[[], _T]) -> _T:
    """What somebody's code answers."""
    try:
        return ask()
    except BaseException as exc:
        raise OptionError(f"semantics {called} raises {_told(exc)}") from exc


def _guarded(check: Callable[..., None], called: str) -> Callable[..., None]:
    """The same, but that all it can raise is a refusal or a bug, whatever it raises.

    The exception is told by its type: its words are code of somebody's own, too.
    """

    @functools.wraps(check)
    def guarded(*args: object) -> None:
        try:
            check(*args)
        except OSError as exc:
            # Not what a class of somebody's own says it is.
            number = _errno(exc)
            # The kernel would drop the reply, and the caller would hang.
            if not errnos.is_errno(number):
                raise RuntimeError(
                    f"{called} raises {_name(type(exc))} without an errno: use "
                    "refused(number)"
                ) from exc
            raise refused(number) from exc
        except Exception:
            raise
        except BaseException as exc:
            # SystemExit and its like would end the loop, and the mount with it.
            raise RuntimeError(f"{called} raises {_name(type(exc))}") from exc

    return guarded


def _check_method(made: Semantics, method: str) -> None:
    """Whether a rule that is code can be called, and has done all when it returns."""
    called = f"{type(made).__name__}.{method}"
    args, kwargs = _METHODS[method]
    code = getattr(made, method)
    if inspect.iscoroutinefunction(code) or inspect.isgeneratorfunction(code):
        raise OptionError(f"semantics {called}: it is called, and must be a plain def")
    try:
        inspect.signature(code).bind(*args, **kwargs)
    except (TypeError, ValueError) as exc:
        raise OptionError(f"semantics {called}: {exc}") from exc


def _check_names(
    found: type[Semantics], own: dict[str, object], known: list[str]
) -> None:
    """A rule with a mistake in its name would be no rule, and nobody would see."""
    bases = found.__mro__[: found.__mro__.index(Semantics)]
    for name in [*own, *(name for base in bases for name in vars(base))]:
        if name in known or name.startswith("_"):
            continue
        if name == "events":
            raise OptionError(
                f"semantics {found.__name__}.events: it is made from plan: give that"
            )
        if new := OLD_NAMES.get(name):
            raise OptionError(
                f"semantics {found.__name__}.{name}: rule {name!r} is called {new!r} "
                "now"
            )
        if near := difflib.get_close_matches(name, known, 1, 0.7):
            raise OptionError(
                f"semantics {found.__name__}.{name}: no rule has that name: did "
                f"you mean {near[0]}?"
            )


def _word(made: Semantics, word: str) -> str:
    name = type(made).__name__
    value: object = _asked(f"{name}.{word}", lambda: getattr(made, word))
    if type(value) is not str:
        raise OptionError(f"semantics {name}.{word} is {value!r}: it must be text")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise OptionError(
            f"semantics {name}.{word} is {value!r}: it must be text, and UTF-8 has no "
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
    if get_origin(kind) is Literal:
        allowed = get_args(kind)
        if value not in allowed:
            choices = " or ".join(map(repr, allowed))
            raise OptionError(
                f"semantics {name}.{rule} is {value!r}: it can be {choices}"
            )
        # Not what only equals it, such as a text of a class of its own.
        value = allowed[allowed.index(value)]
    elif type(value) is not kind:
        raise OptionError(
            f"semantics {name}.{rule} is {value!r}: it must be {_article(kind)}"
        )
    elif rule.endswith("_errno") and not errnos.is_errno(value):
        raise OptionError(
            f"semantics {name}.{rule} is {value!r}: it must be an errno, such as "
            "errno.EINVAL"
        )
    elif rule.endswith("_errno") and value == errno.ENOSYS:
        raise OptionError(
            f"semantics {name}.{rule} is ENOSYS, after which the kernel would never "
            "ask again: use another, such as errno.EOPNOTSUPP"
        )
    elif rule == "magic" and value not in range(1 << 32):
        raise OptionError(f"semantics {name}.magic is {value!r}: it must have 32 bits")
    return value


def _article(kind: type) -> str:
    return {bool: "True or False", int: "a whole number"}.get(kind, kind.__name__)


def _plan(made: Semantics, *, punches: bool) -> Plan:
    called = f"{type(made).__name__}.plan"
    plan: object = _asked(called, lambda: made.plan(punches=punches))
    if not isinstance(plan, Plan):
        raise OptionError(f"semantics {called} returns {plan!r}: it must be a Plan")
    for event, allowed in ((plan.before, _BEFORE), (plan.after, _AFTER)):
        if event not in allowed:
            raise OptionError(f"semantics {called}: no such event there: {event!r}")
    return plan
