"""Refuses what a scenario must not do, because the explorer cannot see it."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from inaccfs.errors import InaccfsError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


class GuardError(InaccfsError):
    """A scenario does something that the explorer cannot see."""


_REFUSED: Final = {
    "socket.__new__": "makes sockets",
    "_thread.start_new_thread": "starts threads",
    "_thread.start_joinable_thread": "starts threads",
    "subprocess.Popen": "starts processes",
    "os.fork": "starts processes",
    "os.posix_spawn": "starts processes",
    "os.forkpty": "starts processes",
    "os.system": "starts processes",
    "os.exec": "starts processes",
}
"""By audit event (sys.addaudithook)."""


class _Guard:
    """The one audit hook. It cannot be removed, and does nothing while it is off."""

    def __init__(self) -> None:
        self.on = False
        self._there = False

    def arm(self) -> None:
        if not self._there:
            self._there = True
            sys.addaudithook(self._look)
            # Python 3.11 has no event of threads.
            start = threading.Thread.start

            def watched_start(thread: threading.Thread) -> None:
                self._look("_thread.start_new_thread", None)
                start(thread)

            setattr(threading.Thread, "start", watched_start)  # noqa: B010

    def _look(self, event: str, _: object) -> None:
        if self.on and event in _REFUSED:
            raise GuardError(
                f"it {_REFUSED[event]}, of which the explorer knows nothing"
            )


_guard: Final = _Guard()


@contextmanager
def guarded(*, on: bool = True) -> Iterator[None]:
    """In a with block, making a socket, a thread or a process raises `GuardError`."""
    before = _guard.on
    _guard.arm()
    _guard.on = on
    try:
        yield
    finally:
        _guard.on = before


_FIXED: Final = (int, float, str, bytes, type(None))


class Things:
    """The attributes of a scenario and its classes, and the globals of its file.

    Actors must not change them: they would share state that is not tracked. VMs and
    files are tracked, and are left out here.
    """

    def __init__(self, scenario: object) -> None:
        self._places: Final[list[tuple[str, dict[str, Any]]]] = [
            ("self", vars(scenario))
        ]
        for kind in type(scenario).__mro__:
            if not _is_ours(kind):
                module = sys.modules.get(kind.__module__)
                self._places.append((kind.__name__, dict_of(kind)))
                if module is not None and module.__name__ != "builtins":
                    self._places.append((module.__name__, vars(module)))
        self._names: Final = [
            (said, place, name)
            for said, place in self._places
            for name, value in place.items()
            # Setting an attribute of self is refused elsewhere.
            if _may_change(name, value)
            and not (said == "self" and isinstance(value, _FIXED))
        ]
        self._before: Final = self._now()

    def _now(self) -> list[Hashable]:
        return [_frozen(place.get(name), 0) for _, place, name in self._names]

    def check(self) -> None:
        """Raise `GuardError` if something has changed since the beginning."""
        if not self._names or (now := self._now()) == self._before:
            return
        changed = next(
            f"{said}.{name}"
            for (said, _, name), before, after in zip(
                self._names, self._before, now, strict=True
            )
            if before != after
        )
        raise GuardError(
            f"an actor changes {changed}, which the explorer does not track: what "
            "actors share are files and VMs"
        )


def dict_of(kind: type) -> Any:  # noqa: ANN401 - a mapping proxy, as good as a dict
    """The attributes of a class."""
    return vars(kind)


def _is_ours(kind: type) -> bool:
    return kind is object or kind.__module__.partition(".")[0] == "inaccfs"


def _may_change(name: str, value: object) -> bool:
    """Whether *value* is data, and not a module, a class, a function or of inaccfs."""
    if name.startswith("__") or name == "_world":
        return False
    if isinstance(value, ModuleType | type) or callable(value):
        return False
    return not _is_ours(type(value))


def _frozen(value: Any, depth: int) -> Hashable:  # noqa: ANN401 - of any type
    """A hashable copy of *value*, to be compared later."""
    kind = type(value)
    if isinstance(value, _FIXED):
        return value
    if depth > 4 or _is_ours(kind) or isinstance(value, ModuleType | type):
        return id(value)
    if isinstance(value, list | tuple | deque):
        return kind, tuple([_frozen(each, depth + 1) for each in value])
    if isinstance(value, dict):
        return kind, tuple(
            [(id(key), _frozen(one, depth + 1)) for key, one in value.items()]
        )
    if isinstance(value, set | frozenset):
        return kind, frozenset(map(id, value))
    if isinstance(value, bytearray):
        return bytes(value)
    if kind.__module__ == itertools.count.__module__:
        return repr(value)
    attributes = getattr(value, "__dict__", None)
    if attributes and not callable(value):
        return id(value), _frozen(attributes, depth + 1)
    return id(value)
