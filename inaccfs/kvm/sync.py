"""What the simulated KVM asks of its threads: locks, conditions, and to take steps.

The locks of a VM, its vCPUs, files and VMM are all made here, each by its name, and the
steps of faults are taken here. So those who want to decide which thread goes next give
a VM a `Sync` of their own.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

_T = TypeVar("_T")


class Lock(Protocol):
    """What is used of `threading.Lock`; one thread does not take it twice."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


class Condition(Protocol):
    """What is used of `threading.Condition`, with its lock held."""

    def wait_for(
        self, predicate: Callable[[], _T], timeout: float | None = None
    ) -> _T: ...
    def notify_all(self) -> None: ...


class Step(Protocol):
    """What takes a step of a generator, and returns what that is to be sent."""

    def __call__(self) -> Any: ...  # noqa: ANN401 - each step has an answer of its own


class Sync(Protocol):
    """How the threads of a VM wait for each other."""

    def lock(self, name: str) -> Lock:
        """A lock of a kind: "mmu_lock", "guest_mode" and so on."""

    def condition(self, lock: Lock) -> Condition:
        """A condition with that lock."""

    def drive(self, steps: Generator[Step, Any, _T]) -> _T:
        """Take all steps in this thread; return what the generator returns.

        A step is called, and the generator sent what that returns, or thrown what it
        raises.
        """


class _OperatingSystem:
    """Locks of Python's own threads."""

    def lock(self, name: str) -> Lock:
        return threading.Lock()

    def condition(self, lock: Lock) -> Condition:
        assert isinstance(lock, type(threading.Lock()))
        return threading.Condition(lock)

    def drive(self, steps: Generator[Step, Any, _T]) -> _T:
        try:
            step = next(steps)
            while True:
                try:
                    answer = step()
                except BaseException as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(answer)
        except StopIteration as stop:
            result: _T = stop.value
            return result


THREADS: Final[Sync] = _OperatingSystem()
"""Python's own threads."""
