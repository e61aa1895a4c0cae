"""The kinds of violations by name, and the KVM's invalidation counter, tracked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.invalidation import Invalidation

if TYPE_CHECKING:
    from inaccfs.explore.seen import Sight

KINDS: Final = {
    "use-after-free": "a guest uses a frame that has been freed",
    "stale-mapping": "a punch has returned, and a mapping of its page is left",
    "wrong-kind": "a private page is mapped as shared, or a shared one as private",
    "use-after-change": "a device uses a page that was removed or converted",
    "changed-frozen": "a page of a frozen file comes or goes",
    "unpaired": "an end without its begin, or a begin without its end",
    "leaked-reference": "a reference to a page is left when all is over",
    "leaked-notifier": "a notifier is left when its VM has been closed",
    "leaked-frame": "a frame is not free that no page has, and nobody holds",
    "freed-held": "a frame is freed to which somebody has a reference",
    "refused-put": "a reference is put that there is not",
    "unexplained-read": "a guest reads what no order of the calls explains",
    "unexplained-exit": "a guest is refused a page that its file has",
    "raises": "a callback of a VM raises",
    "miscounted": "the counters of a VM do not say what it has mapped",
    "deadlock": "actors wait for each other",
    "waits-for-ever": "an actor waits for what never comes",
    "always": "what a scenario says holds always does not",
}
"""Each kind of a violation, and what it means."""


class CountedInvalidation(Invalidation):
    """KVM's retry protocol, tracked. It counts below zero, as v10's kernel did."""

    __slots__ = ("_in_progress", "_seq", "_sight", "_who")

    def __init__(self, sight: Sight, who: str) -> None:
        self._sight: Final = sight
        self._who: Final = who
        self._in_progress = 0
        self._seq = 0
        super().__init__()

    @property
    def seq(self) -> int:
        """See `Invalidation`."""
        self._sight.read("seq")
        return self._seq

    @seq.setter
    def seq(self, value: int) -> None:
        self._sight.write("seq")
        self._seq = value

    @property
    def in_progress(self) -> int:
        """See `Invalidation`."""
        self._sight.read("in progress")
        return self._in_progress

    @in_progress.setter
    def in_progress(self, value: int) -> None:
        self._sight.write("in progress")
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
            self._sight.schedule.violate(
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
        self._sight.schedule.note(text)


class NoRetry(CountedInvalidation):
    """A KVM whose faults never retry."""

    __slots__ = ()

    def retry(self, seq: int, start: int, end: int) -> bool:
        """See `Invalidation.retry`."""
        return False
