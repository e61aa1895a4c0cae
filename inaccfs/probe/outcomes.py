"""The outcome of an attempt: "ok", an errno, a signal, or "not here: why"."""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING, Final

from inaccfs import errnos

if TYPE_CHECKING:
    from collections.abc import Callable

_NOT_HERE: Final = "not here: "


class NotHere(Exception):
    """The machine or the kind of file lacks what a row tries. The message says what."""


def signal_name(number: int) -> str:
    """The name of a signal, such as SIGBUS."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def not_here(reason: str) -> str:
    """The outcome of a row that could not be tried."""
    return _NOT_HERE + reason


def was_tried(outcome: str) -> bool:
    """Whether the outcome is about the file, and not about the machine."""
    return not outcome.startswith(_NOT_HERE)


def differ(one: str, other: str) -> bool:
    """Whether two outcomes differ. One that was not tried differs from none."""
    return one != other and was_tried(one) and was_tried(other)


def of(call: Callable[[], str | None]) -> str:
    """The outcome of *call*: what it returns, or the name of what it raises."""
    try:
        return call() or "ok"
    except NotHere as exc:
        return not_here(str(exc))
    except OSError as exc:
        if exc.errno == errno.ENOSYS:
            return not_here("the kernel has no such call")
        return errnos.name(exc.errno)
