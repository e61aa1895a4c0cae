"""Row 17: the errno of each error, version by version, and how to choose others."""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from inaccfs import errnos
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import Bind, refused
from inaccfs.syscalls import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.client import Client
    from inaccfs.client.blockingfile import File
    from inaccfs.control.messages import Semantics
    from inaccfs.experiments.lab import Lab

_PAGES: Final = 4
_SIZE: Final = _PAGES * PAGE_SIZE
_KEEP: Final = FALLOC_FL_KEEP_SIZE
_PUNCH: Final = FALLOC_FL_PUNCH_HOLE | _KEEP


class Policy(Bind):
    """Resizing a sized file is EBUSY, and each rule has its own errno."""

    read_errno = errno.EACCES
    unbound_errno = errno.EFAULT

    def check_size(self, current: int, new: int, page_size: int) -> None:
        if current:
            raise refused(errno.EBUSY)
        super().check_size(current, new, page_size)


class _AbsentError(Exception):
    """The semantics have no such call."""


class _Subject(NamedTuple):
    """A file of four pages, page 1 allocated, without notifiers."""

    fd: int
    file: File
    rules: Semantics
    # Undone after the step.
    undo: ExitStack

    def claim(
        self, end: int = _PAGES, start: int = 0, exclusive: bool | None = None
    ) -> None:
        """Register or bind a notifier for these pages, as the semantics require."""
        if self.rules.by_range:
            notifier = self.file.bind(start, end, _ignore, exclusive=exclusive)
        else:
            notifier = self.file.register_notifier(_ignore)
        self.undo.callback(notifier.unregister)


_Step: TypeAlias = "Callable[[_Subject], object]"


def _ignore(start: int, end: int) -> None:
    """A callback that has nothing to unmap."""


def _fallocate(mode: int, offset: int, length: int) -> _Step:
    return lambda to: fallocate(to.fd, mode, offset, length)


def _truncate(size: int) -> _Step:
    return lambda to: os.ftruncate(to.fd, size)


def _map(flags: int) -> _Step:
    return lambda to: mmap.mmap(to.fd, PAGE_SIZE, flags).close()


def _get_pfn(to: _Subject, offset: int) -> int:
    to.claim()
    return to.file.get_pfn(offset).pfn


def _get_poisoned(to: _Subject) -> None:
    to.claim()
    to.file.memory_failure(1)
    to.file.get_pfn(1)


def _get_locked(to: _Subject) -> None:
    _get_pfn(to, 1)
    to.file.get_pfn(1)


def _put(to: _Subject) -> None:
    pfn = _get_pfn(to, 1)
    if to.rules.keeps_references:
        to.file.put_pfn(pfn)
    to.file.put_pfn(pfn)


def _wrong_notifier(to: _Subject) -> object:
    if to.rules.by_range:
        return to.file.register_notifier(_ignore)
    return to.file.bind(0, 1, _ignore)


def _bind_twice(to: _Subject) -> None:
    to.claim(2)
    to.claim(3, start=1)


def _where(rule: str, values: str, step: _Step) -> _Step:
    """The step, but absent where the rule has none of these values."""

    def checked(to: _Subject) -> None:
        if getattr(to.rules, rule) not in values.split():
            raise _AbsentError
        step(to)

    return checked


_bound = partial(_where, "scope", "range")
_reported = partial(_where, "memory_failure", "error invalidate")

_STEPS: Final[tuple[tuple[str, _Step], ...]] = (
    ("truncate to the same size", _truncate(_SIZE)),
    ("truncate to more", _truncate(_SIZE + PAGE_SIZE)),
    ("truncate, unaligned", _truncate(100)),
    ("allocate", _fallocate(_KEEP, 0, PAGE_SIZE)),
    ("allocate without KEEP_SIZE", _fallocate(0, 0, PAGE_SIZE)),
    ("allocate, unaligned", _fallocate(_KEEP, 100, PAGE_SIZE)),
    ("the same without KEEP_SIZE", _fallocate(0, 100, PAGE_SIZE)),
    ("allocate past the end", _fallocate(_KEEP, _SIZE, PAGE_SIZE)),
    ("zero range", _fallocate(FALLOC_FL_ZERO_RANGE | _KEEP, 0, PAGE_SIZE)),
    ("punch without KEEP_SIZE", _fallocate(FALLOC_FL_PUNCH_HOLE, 0, PAGE_SIZE)),
    ("punch, unaligned", _fallocate(_PUNCH, 100, PAGE_SIZE)),
    ("punch past the end", _fallocate(_PUNCH, _SIZE, PAGE_SIZE)),
    ("read", lambda to: os.read(to.fd, 1)),
    ("write", lambda to: os.write(to.fd, b"x")),
    ("pread", lambda to: os.pread(to.fd, 1, 0)),
    ("mmap MAP_SHARED", _map(mmap.MAP_SHARED)),
    ("mmap MAP_PRIVATE", _map(mmap.MAP_PRIVATE)),
    ("get-pfn", lambda to: _get_pfn(to, 1)),
    ("get-pfn of a hole", lambda to: _get_pfn(to, 2)),
    ("get-pfn past the end", lambda to: _get_pfn(to, _PAGES)),
    ("get-pfn, nobody bound", _bound(lambda to: to.file.get_pfn(1))),
    ("get-pfn, poisoned", _reported(_get_poisoned)),
    ("get-pfn, locked", _where("references", "locked", _get_locked)),
    ("put without get", _put),
    ("memory-failure", lambda to: to.file.memory_failure(1)),
    ("bind for register, or reverse", _wrong_notifier),
    ("bind, overlapping", _bound(_bind_twice)),
    ("bind, not exclusive", _bound(lambda to: to.claim(exclusive=False))),
    ("bind past the end", _bound(lambda to: to.claim(_PAGES + 1))),
)


def _run(lab: Lab) -> None:
    columns = []
    for semantics in lab.semantics:
        with lab.bench(semantics, size="1m") as bench:
            columns.append([_outcome(bench.shim, step) for _, step in _STEPS])
    rows = zip([name for name, _ in _STEPS], *columns, strict=True)
    lab.table(["", *map(lab.label, lab.semantics)], list(rows))


def _outcome(shim: Client, step: _Step) -> str:
    """The outcome of a step on a new file."""
    with ExitStack() as undo:
        fd = shim.memfd_create("subject", size=_SIZE)
        undo.callback(os.close, fd)
        parts.allocate(fd, 1, 1)
        file = undo.enter_context(shim.file(fd))
        try:
            step(_Subject(fd, file, shim.query_semantics(), undo))
        except OSError as exc:
            return errnos.name(exc.errno)
        except _AbsentError:
            return "-"
        return "ok"


EXPERIMENT: Final = Experiment(
    name="errnos",
    question="Which errno does each wrong call get, and can they be chosen?",
    run=_run,
    semantics=("v7", "v8", "v10", "bind", "guest_memfd", f"{__file__}:Policy"),
)
