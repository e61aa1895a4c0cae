"""Row 16: how a file gets its size, and what else changes it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import V8, refused
from inaccfs.syscalls import fallocate

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.experiments.lab import Lab


class Growable(V8):
    """A rule for memory hotplug: a file may grow at any time, and never shrink."""

    def check_size(self, current: int, new: int, page_size: int) -> None:
        if new < current:
            raise refused(errno.EPERM)
        # As if the file had no size yet.
        super().check_size(0, new, page_size)


# Steps: a name, the initial size in bytes, and the call that is made.
_STEPS: Final[tuple[tuple[str, int, Callable[[int], None]], ...]] = (
    ("truncate 0 -> 0", 0, lambda fd: os.ftruncate(fd, 0)),
    ("truncate 0 -> 1 byte", 0, lambda fd: os.ftruncate(fd, 1)),
    ("truncate 0 -> 1 page", 0, lambda fd: os.ftruncate(fd, PAGE_SIZE)),
    ("truncate to the same", PAGE_SIZE, lambda fd: os.ftruncate(fd, PAGE_SIZE)),
    ("truncate to more", PAGE_SIZE, lambda fd: os.ftruncate(fd, 2 * PAGE_SIZE)),
    ("truncate to 0", PAGE_SIZE, lambda fd: os.ftruncate(fd, 0)),
    ("truncate to 1 byte", PAGE_SIZE, lambda fd: os.ftruncate(fd, 1)),
    (
        "fallocate past the end",
        PAGE_SIZE,
        lambda fd: fallocate(fd, 0, PAGE_SIZE, PAGE_SIZE),
    ),
    (
        "the same, KEEP_SIZE",
        PAGE_SIZE,
        lambda fd: parts.allocate(fd, 1, 1),
    ),
)


def _run(lab: Lab) -> None:
    columns = [_column(lab, semantics) for semantics in lab.semantics]
    steps = [step for step, _, _ in _STEPS]
    lab.table(
        ["", *map(lab.label, lab.semantics)], list(zip(steps, *columns, strict=True))
    )


def _column(lab: Lab, semantics: str) -> list[str]:
    """The outcome of each step, and the new size where that has changed."""
    found = []
    with lab.bench(semantics, size="1m") as bench:
        for number, (_, size, step) in enumerate(_STEPS):
            path = bench.mount.path / f"file{number}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT)
            try:
                if size:
                    os.ftruncate(fd, size)
                found.append(_outcome(fd, size, step))
            finally:
                os.close(fd)
    return found


def _outcome(fd: int, size: int, step: Callable[[int], None]) -> str:
    try:
        step(fd)
    except OSError as exc:
        return errnos.name(exc.errno)
    now = os.fstat(fd).st_size
    pages = now // PAGE_SIZE
    return "ok" if now == size else f"ok, {pages} page{'s'[: pages != 1]}"


EXPERIMENT: Final = Experiment(
    name="size",
    question="How does a file get its size, and what can change it afterwards?",
    run=_run,
    semantics=("v7", "v8", "v10", "guest_memfd", f"{__file__}:Growable"),
)
