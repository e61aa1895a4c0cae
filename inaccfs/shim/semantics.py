"""The rules: what the shim refuses before it asks the backing.

A semantics is asked, never compared by name. This one is the seed's: patch v8
1/8 of 15 September 2022, mm/memfd_inaccessible.c.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final, Protocol

from inaccfs.syscalls import FALLOC_FL_PUNCH_HOLE

INACCESSIBLE_MAGIC: Final = 0x494E4143
"""f_type of the seed's pseudo file system: "INAC", include/uapi/linux/magic.h."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A semantics in words: what query-semantics tells."""

    name: str
    # The events that notifiers get.
    events: list[str]
    # When, as against the backing's change of the file.
    order: str
    # Which calls of fallocate(2) notify.
    notifies: str
    notifies_on_failure: bool
    unit: str
    # What a notifier is registered for.
    scope: str
    # Whether a page frame that is asked for is allocated.
    allocates: bool


class Semantics(Protocol):
    """What a version of the interface decides. Sizes and offsets are bytes."""

    def check_fallocate(
        self, mode: int, offset: int, length: int, page_size: int
    ) -> None:
        """Raise `OSError` if this fallocate(2) must not reach the backing."""

    def check_size(self, current: int, new: int, page_size: int) -> None:
        """Raise `OSError` if a file of *current* bytes may not be set to *new*."""

    def invalidates(self, mode: int, *, failed: bool) -> bool:
        """Whether notifiers are told after the backing has carried out *mode*."""

    def described(self) -> Rules:
        """The rules in words."""


INVALIDATE: Final = "INVALIDATE"
"""The event of a semantics that knows only one."""


def _refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class V8:
    """inaccessible_fallocate() and inaccessible_setattr() of the seed."""

    def check_fallocate(
        self, mode: int, offset: int, length: int, page_size: int
    ) -> None:
        # Only a punch is checked: a plain allocation may be unaligned, as posted.
        if mode & FALLOC_FL_PUNCH_HOLE and (offset | length) & (page_size - 1):
            raise _refused(errno.EINVAL)

    def check_size(self, current: int, new: int, page_size: int) -> None:
        # EPERM comes first: a file that has its size refuses an unaligned one too.
        if current:
            raise _refused(errno.EPERM)
        if new & (page_size - 1):
            raise _refused(errno.EINVAL)

    def invalidates(self, mode: int, *, failed: bool) -> bool:
        # As posted: for every mode, and also when the backing has refused.
        return True

    def described(self) -> Rules:
        return Rules(
            name="v8",
            events=[INVALIDATE],
            order="after",
            notifies="every fallocate",
            notifies_on_failure=True,
            unit="pages",
            scope="file",
            allocates=True,
        )
