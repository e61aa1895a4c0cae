"""The state of one file of a mount: its fd, its notifiers and its pages.

struct inaccessible_data of v8 has a lock, the memfd and the notifiers. Here the memfd
is an fd of the backing, opened for writing; and there are the pages that have been
fetched (pages.py), and which of all pages are private (attributes.py).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from inaccfs.shim.holes import first_present
from inaccfs.shim.notifiers import Notifiers
from inaccfs.shim.pages import Pages
from inaccfs.shim.trace import FileTrace
from inaccfs.shim.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Hashable

    from inaccfs.semantics.attributes import Kinds
    from inaccfs.semantics.rules import Check
    from inaccfs.shim.superblock import Superblock


INLINE_BYTES: Final = 4 << 20
"""A range up to this is changed in the loop, in under a millisecond."""


class FileState:
    """The state of one file; `InaccessibleFile` has the calls that change it."""

    __slots__ = (
        "_check_fallocate",
        "_counters",
        "_fast_limit",
        "_headroom",
        "_size_limit",
        "attributes",
        "fd",
        "frozen_by",
        "granule",
        "inline_bytes",
        "label",
        "notifiers",
        "page_size",
        "pages",
        "superblock",
        "trace",
        "turn",
        "writable",
    )

    def __init__(
        self, fd: int, superblock: Superblock, *, writable: bool = True
    ) -> None:
        """Take an *fd* of the backing."""
        # An fd of the backing file. The caller of `__init__` closes it.
        self.fd = fd
        # Whether fd is open for writing. If not, only fstat(2) works.
        self.writable = writable
        # A name, for people, of a file that has no name in the mount.
        self.label = ""
        self.page_size: Final = superblock.page_size
        self.superblock: Final = superblock
        # Looked up once: these are needed for every request.
        self._check_fallocate: Check = superblock.semantics.check_fallocate
        self.granule: Final = superblock.granule
        self._counters: Final = superblock.trace.counters
        self.trace: Final = FileTrace(superblock.trace, fd, superblock.page_size)
        self._headroom: Final = superblock.headroom
        # The most bytes that are changed in the loop. Even a single page may be so
        # large that it takes long.
        self.inline_bytes: Final = INLINE_BYTES if self.page_size <= INLINE_BYTES else 0
        # In bytes: a call of this length or less may take the fast path, without a look
        # at notifiers, pages or the turn; -1 for none. See update_fast_path().
        self._fast_limit = self.inline_bytes
        rules = superblock.semantics
        self.notifiers: Final = Notifiers(
            self.trace,
            superblock.ack_seconds,
            self.update_fast_path,
            unit=self.page_size if rules.unit == "bytes" else 1,
            clips=rules.reported == "clipped",
            overlap_errno=rules.overlap_errno,
            loop=superblock.loop,
        )
        # In bytes: allocations must end here; None where the rules allow them past the
        # end of the file. Caches st_size; 0 means not looked up yet.
        self._size_limit: int | None = 0 if rules.past_end == "refused" else None
        self.attributes: Final = superblock.attributes()
        # The holder that has frozen the file: see `inaccfs.shim.freezing`.
        self.frozen_by: Hashable | None = None
        self.turn: Final = Turn(superblock.busy, self.update_fast_path, superblock.loop)
        self.pages: Final = Pages(
            superblock,
            fd,
            self.trace,
            self.turn,
            self.notifiers,
            self.attributes,
            self.update_fast_path,
            lambda: self.is_frozen,
        )

    def reopened(self, fd: int, *, writable: bool) -> None:
        """Use another fd of the same backing file from now on."""
        self.fd, self.writable = fd, writable
        self.trace.reopened(fd)
        self.pages.reopened(fd)

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return os.fstat(self.fd).st_size

    @property
    def count(self) -> int:
        """How many pages its size has, rounded up."""
        return -(-self.size // self.page_size)

    def first_present(self, start: int, end: int) -> int | None:
        """The first page from *start* to *end* that has memory, if there is one."""
        return first_present(self.fd, self.page_size, start, end)

    @property
    def is_plain(self) -> bool:
        """Whether it has no long operation, no notifier, and no fetched page."""
        return not self.turn.taken and not self.notifiers and self.pages.nothing_fetched

    @property
    def must_stay(self) -> bool:
        """Whether a closed file must be kept: it has state that the backing lacks.

        That is state of fetched, poisoned or converted pages.
        """
        return not self.pages.nothing_fetched or not self.attributes.are_initial

    def kinds(self, start: int, end: int) -> Kinds | None:
        """The kinds that the events of a punch of these pages carry."""
        return self.superblock.kinds(self.attributes, start, end)

    def update_fast_path(self) -> None:
        """Recompute which calls may take the fast path.

        Call it after every change of `turn`, `notifiers` or `pages.nothing_fetched`.
        """
        self._fast_limit = self.inline_bytes if self.is_plain else -1

    def set_frozen(self, holder: Hashable | None, check: Check) -> None:
        """Freeze or unfreeze it; *check* is that of fallocate(2) from now on."""
        self.frozen_by, self._check_fallocate = holder, check

    @property
    def is_frozen(self) -> bool:
        """Whether a holder has frozen it."""
        return self.frozen_by is not None

    def check_frozen(self) -> None:
        """Raise `OSError`, EPERM, if it is frozen."""
        if self.is_frozen:
            raise OSError(errno.EPERM, "the file is frozen")

    def close(self) -> None:
        """Release the fetched pages. This may take long for gigabytes."""
        self.pages.close()
