"""A user of a file that maps its pages: a KVM with one slot, in a few lines."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.client import connect
from inaccfs.errors import PinnedError
from inaccfs.experiments import parts
from inaccfs.kvm.invalidation import Invalidation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import ExitStack

    from inaccfs.client import File, Notifier
    from inaccfs.client.requests import Pfn
    from inaccfs.experiments.lab import Bench

NOT_KEPT: Final = "no attributes in the file"
"""In a table: these rules have no conversions in the file."""


class Mapping(NamedTuple):
    """The mapping of a page."""

    pfn: int
    # Whether it is private; None if attributes are not kept in the file.
    private: bool | None


class Mapper:
    """Maps pages on a fault, zaps them on an event, and retries as KVM does.

    It has its own connection. `at` is called at points of a fault and of events, and
    may block: "begun", after seq was read; "got", after get-pfn; "start" and "end", at
    the end of the callbacks.
    """

    def __init__(
        self,
        stack: ExitStack,
        bench: Bench,
        fd: int,
        pages: int,
        *,
        retries: bool = True,
        at: Callable[[str, int], object] = lambda *_: None,
    ) -> None:
        """Register for all *pages*. Without *retries* a fault never starts over."""
        self.client: Final = stack.enter_context(connect(bench.mount.path))
        self.rules: Final = self.client.query_semantics()
        self.file: Final[File] = stack.enter_context(self.client.file(fd))
        self._retries: Final = retries
        self._at: Final = at
        # Guards the rest, as mmu_lock does.
        self._lock: Final = threading.Lock()
        self._invalidation: Final = Invalidation()
        self.mapped: Final[dict[int, Mapping]] = {}
        # The frame of the last get-pfn.
        self.got = -1
        # Counts: events with a start or alone, mappings zapped, faults started over.
        self.events = self.zapped = self.retried = 0
        # The events: the first page, the one after the last, and kinds.
        self.seen: Final[list[tuple[int, int, str | None]]] = []
        self.notifier: Final = self._listen(pages)
        stack.callback(self._leave)

    def _listen(self, pages: int) -> Notifier:
        def once(*event: object) -> None:
            self._start(*event)  # type: ignore[arg-type]
            self._end(*event)  # type: ignore[arg-type]

        if "INVALIDATE" in self.rules.events:
            start, end = once, None
        else:
            start, end = self._start, self._end  # type: ignore[assignment]
        return parts.listen(
            self.file,
            self.rules,
            0,
            pages,
            start,
            invalidate_end=end,
            with_kinds=True,
        )

    def _leave(self) -> None:
        with suppress(OSError):
            self.notifier.unregister()

    def _start(self, start: int, end: int, kinds: str | None) -> None:
        with self._lock:
            self._invalidation.begin(start, end)
            self.events += 1
            self.seen.append((start, end, kinds))
            for page in [page for page in self.mapped if start <= page < end]:
                private = self.mapped[page].private
                if kinds in (None, "both") or (kinds == "private") is bool(private):
                    del self.mapped[page]
                    self.zapped += 1
        self._at("start", start)

    def _end(self, start: int, _end: int, _kinds: str | None) -> None:
        with self._lock:
            self._invalidation.end()
        self._at("end", start)

    def fault(self, page: int, kind: Callable[[Pfn], bool | None] | None = None) -> int:
        """Map a page; return its frame. *kind* says whether it is mapped as private.

        Raises:
            OSError: of get-pfn.
        """
        while True:
            with self._lock:
                seq = self._invalidation.seq
            self._at("begun", page)
            got = self.file.get_pfn(page)
            self.got = got[0]
            self._at("got", page)
            private = got.private if kind is None else kind(got)
            with self._lock:
                retry = self._retries and self._invalidation.retry(seq, page, page + 1)
                if retry:
                    self.retried += 1
                else:
                    self.mapped[page] = Mapping(got[0], private)
            self.put(got[0])
            if not retry:
                return got[0]

    def touch(self, pages: Iterable[int]) -> int:
        """Map unmapped pages; return how many these were."""
        absent = [page for page in pages if page not in self.mapped]
        for page in absent:
            self.fault(page)
        return len(absent)

    def put(self, pfn: int) -> None:
        """Put the reference of get-pfn, if there are references."""
        if self.rules.keeps_references:
            self.file.put_pfn(pfn)


def convert(file: File, offset: int, count: int, *, private: bool) -> int | None:
    """Convert pages; return None, or the page that caused EAGAIN."""
    try:
        file.set_memory_attributes(offset, count, private)
    except PinnedError as exc:
        return exc.offset
    return None


def keeps_attributes(bench: Bench) -> bool:
    """Whether pages of a file can be converted."""
    return bench.shim.query_semantics().in_place
