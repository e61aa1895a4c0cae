"""The retry protocols that an explored VM can have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.invalidation import Invalidation

if TYPE_CHECKING:
    from inaccfs.explore.tracked_vm import Tracker


class CountedInvalidation(Invalidation):
    """KVM's retry protocol, tracked. It counts below zero, as v10's kernel did."""

    __slots__ = ("_in_progress", "_seq", "_tracker", "_who")

    def __init__(self, tracker: Tracker, who: str) -> None:
        self._tracker: Final = tracker
        self._who: Final = who
        self._in_progress = 0
        self._seq = 0
        super().__init__()

    @property
    def seq(self) -> int:
        """See `Invalidation`."""
        self._tracker.read("seq")
        return self._seq

    @seq.setter
    def seq(self, value: int) -> None:
        self._tracker.write("seq")
        self._seq = value

    @property
    def in_progress(self) -> int:
        """See `Invalidation`."""
        self._tracker.read("in progress")
        return self._in_progress

    @in_progress.setter
    def in_progress(self, value: int) -> None:
        self._tracker.write("in progress")
        self._in_progress = value

    def begin(self, start: int, end: int) -> None:
        """See `Invalidation.begin`."""
        super().begin(start, end)
        self._note(f"invalidation begins, in progress {self._in_progress}")

    def end(self) -> None:
        """See `Invalidation.end`."""
        if self._in_progress > 0:
            super().end()
        else:
            self._tracker.schedule.violate(
                "unpaired",
                f"{self._who} gets an end without a begin before it",
            )
            self.seq += 1
            self.in_progress -= 1
        self._note(f"invalidation ends, in progress {self._in_progress}")

    def retry(self, seq: int, start: int, end: int) -> bool:
        """See `Invalidation.retry`."""
        answer = super().retry(seq, start, end)
        self._note("the fault is dropped: retry" if answer else "the fault is good")
        return answer

    def _note(self, text: str) -> None:
        self._tracker.schedule.note(text)


class NoRetry(CountedInvalidation):
    """A KVM whose faults never retry."""

    __slots__ = ()

    def retry(self, seq: int, start: int, end: int) -> bool:
        """See `Invalidation.retry`."""
        return False
