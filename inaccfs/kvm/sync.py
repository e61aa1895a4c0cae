"""How the threads of the simulated KVM synchronize: locks, conditions and steps.

A `Sync` makes all locks of a VM and of its vCPUs, files and VMM, each with a name, and
performs the steps of faults. So a caller that wants to schedule the threads itself
gives the VM a `Sync` of its own.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

_T = TypeVar("_T")


class Lock(Protocol):
    """The methods of `threading.Lock` that are used. A thread never takes one twice."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


class Condition(Protocol):
    """The methods of `threading.Condition` that are used, with its lock held."""

    def wait_for(
        self, predicate: Callable[[], _T], timeout: float | None = None
    ) -> _T: ...
    def notify_all(self) -> None: ...


class Step(Protocol):
    """A step of a generator: performs it, and returns the value to send back."""

    def __call__(self) -> Any: ...  # noqa: ANN401 - each step has an answer of its own


class Sync(Protocol):
    """How the threads of a VM wait for each other."""

    def lock(self, name: str) -> Lock:
        """A new lock; *name* says which kind: "mmu_lock", "guest_mode" and so on."""

    def condition(self, lock: Lock) -> Condition:
        """A new condition that uses *lock*."""

    def drive(self, steps: Generator[Step, Any, _T]) -> _T:
        """Perform all steps in this thread; return what the generator returns.

        Each step is called. Its result is sent to the generator, or its exception
        thrown into it.
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
