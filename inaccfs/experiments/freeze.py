"""A file is frozen while others allocate: do counts of its pages stay correct?"""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs import errnos
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.experiments.mapper import Mapper
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import LiveUpdate
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.client import File
    from inaccfs.experiments.lab import Bench, Lab
    from inaccfs.semantics.attributes import Frozen

# More than the thread allocates before it is stopped.
_PAGES: Final = 1 << 18
_ROUNDS: Final = 8
_SIZE: Final = _PAGES * PAGE_SIZE


class ChecksFirst(LiveUpdate):
    """live-update, but fallocate(2) checks its arguments before the freeze."""

    frozen: ClassVar[Frozen] = "after the checks"  # type: ignore[assignment]


class _Allocator:
    """Allocates page by page in a thread, until it is refused or the file is full."""

    def __init__(self, fd: int) -> None:
        self._fd: Final = fd
        self.pages = 0
        self.errno = 0
        self.over = self.stopped = False

    def run(self) -> None:
        try:
            while self.pages < _PAGES and not self.stopped:
                parts.allocate(self._fd, 1, self.pages)
                self.pages += 1
        except OSError as exc:
            self.errno = exc.errno or 0
        finally:
            self.over = True

    def go_on(self) -> None:
        """Wait until it has allocated another page, or has ended."""
        before = self.pages
        parts.until(lambda: self.over or self.pages > before + 1)


class _Round:
    """The counts of two walks over the present pages, and the outcome of the thread."""

    def __init__(self, bench: Bench, *, freezes: bool) -> None:
        with ExitStack() as stack:
            fd = bench.shim.memfd_create("guest", size=_SIZE)
            stack.callback(os.close, fd)
            file = stack.enter_context(bench.shim.file(fd))
            allocator = _Allocator(fd)
            pool = parts.threads(stack, 1)
            running = pool.submit(allocator.run)
            allocator.go_on()
            self.freezes = freezes and _froze(file)
            first = _walk(file)
            allocator.go_on()
            second = _walk(file)
            self.equal = first == second
            # The differences between the record of a walk and the file.
            if self.freezes:
                running.result(parts.PATIENCE)
                self.refused = errnos.NAMES.get(allocator.errno, "-")
                self.late = _walk(file) - second
                file.unfreeze()
            else:
                parts.until(lambda: allocator.over or allocator.pages > second)
                self.refused = "-"
                self.late = int(_walk(file) > second)
                allocator.stopped = True


def _froze(file: File) -> bool:
    try:
        file.freeze()
    except OSError:
        return False
    return True


def _walk(file: File) -> int:
    """kvm_gmem_luo_preserve() counts the present folios, and then records them."""
    return file.query().allocated


# --- entry points ---------------------------------------------------------------------


def _calls(fd: int, user: Mapper) -> dict[str, Callable[[], object]]:
    """The calls to try on a frozen file. Page 0 is present, page 2 is a hole."""
    window = user.file.shared_window()
    return {
        "fallocate, a hole": lambda: parts.allocate(fd, 1, 2),
        "fallocate, a present page": lambda: parts.allocate(fd, 1),
        "fallocate, half a page": lambda: fallocate(
            fd, FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE // 2
        ),
        "fallocate, past the end": lambda: parts.allocate(fd, 1, _PAGES),
        "punch": lambda: parts.punch(fd, 1),
        "ftruncate, the same size": lambda: os.ftruncate(fd, _SIZE),
        "vCPU faults on a present page": lambda: user.fault(0),
        "vCPU faults on a hole": lambda: user.fault(2),
        "host writes to a present page": lambda: window.write(0, b"new"),
        "host writes to a hole": lambda: window.write(2 * PAGE_SIZE, b"new"),
    }


def _outcomes(bench: Bench) -> dict[str, str]:
    found = {}
    with ExitStack() as stack:
        fd = bench.shim.memfd_create("guest", size=_SIZE)
        stack.callback(os.close, fd)
        parts.allocate(fd, 1)
        user = Mapper(stack, bench, fd, _PAGES)
        file = stack.enter_context(bench.shim.file(fd))
        found["freeze"] = "ok" if _froze(file) else "unknown"
        found |= {name: parts.outcome(call) for name, call in _calls(fd, user).items()}
        found["another unfreezes it"] = parts.outcome(user.file.unfreeze)
        found["its owner unfreezes it"] = parts.outcome(file.unfreeze)
        found["fallocate, a hole, after that"] = parts.outcome(
            lambda: parts.allocate(fd, 1, 3)
        )
    return found


def _run(lab: Lab) -> None:
    rows: list[list[object]] = []
    columns = []
    for semantics in lab.semantics:
        with lab.bench(semantics, size="2g", pfn_source="simulated") as bench:
            for freezes in (True, False):
                rounds = [_Round(bench, freezes=freezes) for _ in range(_ROUNDS)]
                row: list[object] = [sum(each.equal for each in rounds)]
                row.append(", ".join(sorted({each.refused for each in rounds})))
                row.append(sum(each.late for each in rounds))
                frozen = "frozen" if rounds[0].freezes else "not frozen"
                rows.append([bench.semantics, frozen, *row])
            columns.append(_outcomes(bench))
    lab.say(f"{_ROUNDS} times, while a thread allocates page after page")
    head = "rules", "the file is", "both walks equal", "the thread gets"
    lab.table([*head, "pages after the last walk"], rows)
    lab.say()
    lab.table(
        ["", *map(lab.label, lab.semantics)],
        [(name, *(column[name] for column in columns)) for name in columns[0]],
    )


EXPERIMENT: Final = Experiment(
    name="freeze",
    question="Does a frozen file keep the pages that were counted; which calls work?",
    run=_run,
    semantics=("live-update", f"{__file__}:ChecksFirst"),
)
