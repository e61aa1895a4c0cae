"""`Semantics`: the rules in which versions of the interface differ.

A semantics is a class whose attributes are the rules; it reads like a column of the
table that `inaccfs semantics` prints. Other packages read the rules and never compare
the name: they do not know which versions there are.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal, TypeAlias

from inaccfs.errnos import os_error
from inaccfs.semantics.attributes import AttributeRules
from inaccfs.semantics.derived import Derived
from inaccfs.semantics.kvm import KvmRules
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

if TYPE_CHECKING:
    from collections.abc import Callable

INVALIDATE: Final = "INVALIDATE"
INVALIDATE_START: Final = "INVALIDATE_START"
INVALIDATE_END: Final = "INVALIDATE_END"
POPULATE: Final = "POPULATE"
MEMORY_ERROR: Final = "MEMORY_ERROR"

INVALIDATIONS: Final = (INVALIDATE, INVALIDATE_START, INVALIDATE_END)
"""The events of an invalidation: pages are being removed or converted."""

Size: TypeAlias = Literal["once", "fixed", "free"]
PastEnd: TypeAlias = Literal["allocated", "refused"]
OnInterrupt: TypeAlias = Literal["undone", "kept"]
Calls: TypeAlias = Literal["every fallocate", "punches"]
Aligned: TypeAlias = Literal["every fallocate", "punches", "nothing"]
Order: TypeAlias = Literal["before", "after", "bracket"]
Unit: TypeAlias = Literal["pages", "bytes"]
Scope: TypeAlias = Literal["file", "range"]
Reported: TypeAlias = Literal["punched", "clipped"]
ListLocked: TypeAlias = Literal["each walk", "the whole call"]
References: TypeAlias = Literal["counted", "locked", "none"]
MemoryFailure: TypeAlias = Literal["unknown", "error", "invalidate"]
Mmap: TypeAlias = Literal["refused", "SIGBUS", "shared"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The events of one fallocate(2), before and after the change of the backing."""

    before: str | None = None
    after: str | None = None
    # Whether `after` is sent even if the backing has refused the change.
    after_failure: bool = False

    def __bool__(self) -> bool:
        return self.before is not None or self.after is not None


Check: TypeAlias = "Callable[[int, int, int, int], None]"
"""`Semantics.check_fallocate`, or a replacement for it."""


class Semantics(AttributeRules, KvmRules, Derived):
    """Base of all semantics. A subclass sets or inherits each rule.

    `inaccfs mount --semantics FILE.py:CLASS` takes one of your own. The daemon's loop
    calls the methods, so they must not block. To raise anything but `OSError` is a bug:
    the call fails with EIO, and the log has a traceback.
    """

    # --- for people ---------------------------------------------------------------

    # The word for `--semantics`. For a class of your own it is the class's name.
    name: ClassVar[str] = ""
    # Where the rules come from: the version, its date, the file.
    source: ClassVar[str] = ""
    # f_type of the version's file system, include/uapi/linux/magic.h.
    magic: ClassVar[int]

    # --- size and allocation ------------------------------------------------------

    # How truncate(2) sets the size, in `check_size`: "once", from 0 to the final size;
    # "fixed", once, as a part of creating the file; "free", any number of times.
    size: ClassVar[Size]
    # Which calls of fallocate(2) must have page aligned offsets and lengths.
    aligned: ClassVar[Aligned]
    # Whether an allocation must not change the size: EOPNOTSUPP without KEEP_SIZE.
    keep_size_required: ClassVar[bool]
    # Whether an allocation past the size is "allocated", or "refused" with EINVAL.
    past_end: ClassVar[PastEnd]
    # Whether an allocation that a signal ends with EINTR is "undone", or what it has
    # allocated is "kept", as by kvm_gmem_allocate(), which works page by page.
    on_interrupt: ClassVar[OnInterrupt]
    # The errno of read(2) and write(2).
    read_errno: ClassVar[int]
    # Whether mmap(2) is "refused"; or maps, and a touch raises "SIGBUS"; or maps the
    # file's own memory, "shared".
    mmap: ClassVar[Mmap]

    # --- events ---------------------------------------------------------------------

    # Which calls of fallocate(2) send events.
    notifies: ClassVar[Calls]
    # Whether a call that the backing has refused sends them, in the order "after".
    notifies_failures: ClassVar[bool]
    # Whether allocations send POPULATE, and not invalidations.
    populates: ClassVar[bool]
    # When events are sent: once, "before" or "after" the backing's change of the file;
    # or at its start and at its end, "bracket".
    order: ClassVar[Order]
    # The unit of an event's start and end. "bytes" is a bug of the posted v8 and v9.
    unit: ClassVar[Unit]
    # Whether a notifier is registered for a "file", or bound to a "range" of one.
    scope: ClassVar[Scope]
    # Whether overlapping ranges are refused, with `overlap_errno`.
    exclusive: ClassVar[bool]
    # The range that events report to a bound notifier: all of the "punched" range, or
    # the punched range "clipped" to the bound one.
    reported: ClassVar[Reported]
    # Whether events carry the frames that are removed: pgoff, pfn, count and order.
    tells_frames: ClassVar[bool]
    # How long the list of notifiers is locked: for "each walk" of it, so that it may
    # change between start and end; or for "the whole call".
    list_locked: ClassVar[ListLocked]

    # --- page frames ------------------------------------------------------------------

    # Whether get-pfn allocates in a hole; otherwise it fails with ENOENT.
    allocates: ClassVar[bool]
    # What the caller of get-pfn holds: a "counted" reference; the page "locked", until
    # put-pfn, against punches and get-pfn of other clients; or "none".
    references: ClassVar[References]
    # The errno of get-pfn for a page outside of all bound ranges.
    unbound_errno: ClassVar[int]
    # Whether the kernel may move fetched pages, without an event.
    movable: ClassVar[bool]
    # What memory-failure does: "unknown", the command does not exist; "error", it sends
    # MEMORY_ERROR; "invalidate", it sends the events of a punch, and the page stays.
    # get-pfn of a poisoned page fails with EHWPOISON.
    memory_failure: ClassVar[MemoryFailure]

    # --- the rules that are code ------------------------------------------------------

    def check_size(self, current: int, new: int, page_size: int) -> None:
        """Raise `OSError` if a file of *current* bytes may not be set to *new*."""
        if self.size == "free":
            return
        if self.size == "fixed":
            if current or new <= 0 or new & (page_size - 1):
                raise refused(errno.EINVAL)
            return
        # EPERM comes first: a file that has its size refuses an unaligned one too.
        if current:
            raise refused(errno.EPERM)
        if new & (page_size - 1):
            raise refused(errno.EINVAL)

    def check_fallocate(
        self, mode: int, offset: int, length: int, page_size: int
    ) -> None:
        """Raise `OSError` if this fallocate(2) must not reach the backing. In bytes."""
        # These semantics know two modes only, and refuse all others before they look at
        # the offsets.
        if self.keep_size_required and (
            mode & ~FALLOC_FL_PUNCH_HOLE != FALLOC_FL_KEEP_SIZE
        ):
            raise refused(errno.EOPNOTSUPP)
        if mode & FALLOC_FL_PUNCH_HOLE:
            must = self.aligned != "nothing"
        else:
            must = self.aligned == "every fallocate"
        if must and (offset | length) & (page_size - 1):
            raise refused(errno.EINVAL)

    def plan(self, *, punches: bool) -> Plan:
        """The events of a punch, or of any other fallocate(2). Called once a mount."""
        if self.populates and not punches:
            return Plan(after=POPULATE)
        if self.notifies == "punches" and not punches:
            return Plan()
        if self.order == "bracket":
            return Plan(INVALIDATE_START, INVALIDATE_END, after_failure=True)
        if self.order == "before":
            return Plan(before=INVALIDATE)
        return Plan(after=INVALIDATE, after_failure=self.notifies_failures)

    @property
    def events(self) -> list[str]:
        """The events that notifiers get."""
        plans = self.plan(punches=True), self.plan(punches=False)
        found = [event for plan in plans for event in (plan.before, plan.after)]
        if self.memory_failure == "error":
            found.append(MEMORY_ERROR)
        return list(dict.fromkeys(event for event in found if event is not None))


def refused(number: int) -> OSError:
    """An `OSError` with the kernel's text, for a rule to raise."""
    return os_error(number)
