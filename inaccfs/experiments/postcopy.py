"""Row 15: post-copy: a page is fetched from the source when it is first touched."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.experiments.mapper import Mapper
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import WriteV7

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.experiments.lab import Bench, Lab

_PAGES: Final = 16
# How many pages have arrived before the guest starts here.
_PRESENT: Final = 8
_HALF: Final = PAGE_SIZE // 2
_CONTENT: Final = b"c" * PAGE_SIZE

_Read: TypeAlias = "Callable[[int], bytes]"


class NoAlloc(WriteV7):
    """write-v7, but get-pfn of a hole fails: only filling a page allocates it."""

    allocates: ClassVar[bool] = False


class _Guest:
    """A guest whose memory arrives page by page, and a device of its host.

    The device (such as vhost) has mapped the same memory, and reads each page as soon
    as possible: while it is being filled, and afterwards.
    """

    def __init__(self, stack: ExitStack, bench: Bench) -> None:
        self._fd: Final = bench.shim.memfd_create("guest", size=_PAGES * PAGE_SIZE)
        stack.callback(os.close, self._fd)
        self._file: Final = stack.enter_context(bench.shim.file(self._fd))
        self.user: Final = Mapper(stack, bench, self._fd, _PAGES)
        # The memory that the guest and the device read.
        self._memory: Final = self._file.get_memory()
        stack.callback(os.close, self._memory)
        # Pages that have not arrived: the bitmap of KVM userfault.
        self.missing: Final = set(range(_PAGES))
        # Exits for a page to fetch; wrong reads of the guest; and of the device.
        self.exits = self.wrong = self.torn = 0
        for page in range(_PRESENT):
            self.fill(page, whole=True)

    def fill(self, page: int, *, whole: bool) -> None:
        """Write a page that has arrived: at once, or in two halves."""
        if whole:
            os.pwrite(self._fd, _CONTENT, page * PAGE_SIZE)
        else:
            window = self._file.shared_window()
            for at in (0, _HALF):
                window.write(page * PAGE_SIZE + at, _CONTENT[:_HALF])
                # The device can read a mapped page, whatever its content.
                self.torn += self.device(page) not in (_CONTENT, None)
        self.missing.discard(page)

    def device(self, page: int) -> bytes | None:
        """What a mapping without userfault reads from a page; None from a hole."""
        extents = self._file.query_map()
        there = next(
            each.memory == "allocated"
            for each in extents
            if each.offset <= page < each.offset + each.count
        )
        return self._content(page) if there else None

    def _content(self, page: int) -> bytes:
        return os.pread(self._memory, PAGE_SIZE, page * PAGE_SIZE)

    def touch(self, page: int, *, bitmap: bool, whole: bool) -> None:
        """Let a vCPU read a page. With *bitmap* KVM checks that before get-pfn."""
        if bitmap and page in self.missing:
            self.exits += 1
            self.fill(page, whole=whole)
        try:
            self.user.fault(page)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
            # The exit that asks the VMM for the page.
            self.exits += 1
            self.fill(page, whole=whole)
            self.user.fault(page)
        self.wrong += self._content(page) != _CONTENT


def _row(bench: Bench, *, bitmap: bool, whole: bool) -> list[object]:
    with ExitStack() as stack:
        guest = _Guest(stack, bench)
        for page in range(_PAGES):
            guest.touch(page, bitmap=bitmap, whole=whole)
        return [
            *(bench.semantics, "a bitmap" if bitmap else "get-pfn"),
            *("at once" if whole else "in two halves", guest.exits, guest.wrong),
            guest.torn,
        ]


def _run(lab: Lab) -> None:
    rows: list[list[object]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            rules = bench.shim.query_semantics()
            if not (rules.takes_writes and rules.mappable):
                lab.say(f"{bench.semantics}: no write(2) and no mapping to fill it by")
                continue
            rows += [
                _row(bench, bitmap=bitmap, whole=whole)
                for bitmap in (False, True)
                for whole in (True, False)
            ]
    if not rows:
        return
    missing = _PAGES - _PRESENT
    lab.say(f"A guest reads {_PAGES} pages, of which {missing} have not come yet")
    head = "rules", "a missing page shows by", "and is filled", "exits", "wrong"
    lab.table([*head, "half-filled pages seen"], rows)


EXPERIMENT: Final = Experiment(
    name="postcopy",
    question="In post-copy, what shows a missing page, and who sees a half-filled one?",
    run=_run,
    semantics=("write-v7", f"{__file__}:NoAlloc"),
    misfits=(),
)
