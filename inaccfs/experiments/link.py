"""Row 11: a file moves from one VM to another: events, and kept frames."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from inaccfs import errnos
from inaccfs.client import connect
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.semantics import GuestMemfd72

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.client import Client, File, Notifier
    from inaccfs.experiments.lab import Bench, Lab

_PAGES: Final = 8


class Linked(GuestMemfd72):
    """KVM_LINK_GUEST_MEMFD: each VM has its own file on one inode.

    As bindings belong to the file, those of two VMs do not exclude each other.
    """

    exclusive = False


class _Vm:
    """The part of a VM that a file sees: a binding, on a separate connection."""

    def __init__(self, stack: ExitStack, bench: Bench, fd: int) -> None:
        self.shim: Final[Client] = stack.enter_context(connect(bench.mount.path))
        self._by_range: Final = self.shim.query_semantics().by_range
        self._file: Final[File] = stack.enter_context(self.shim.file(fd))
        self._notifier: Notifier | None = None
        self.events = 0
        stack.callback(self.unbind)

    def bind(self, *, prepare: bool = False) -> None:
        if self._by_range:
            self._notifier = self._file.bind(0, _PAGES, self._hear, prepare=prepare)
        else:
            self._notifier = self._file.register_notifier(self._hear)

    def _hear(self, _start: int, _end: int) -> None:
        self.events += 1

    def commit(self) -> None:
        assert self._notifier is not None
        self._notifier.commit()

    def unbind(self) -> None:
        notifier, self._notifier = self._notifier, None
        if notifier is not None:
            with suppress(OSError):
                notifier.unregister()

    def frames(self) -> list[int]:
        """The frames that the VM gets, at most one reference each, put at once."""
        extents = self._file.get_pfns(0, _PAGES)
        if self.shim.query_semantics().keeps_references:
            self._file.put_pfns(extents)
        return parts.frames(extents)


class _Move:
    """Two VMs, the first of which has the file."""

    def __init__(self, stack: ExitStack, bench: Bench) -> None:
        self.fd: Final = parts.new_file(stack, bench.shim, "guest", _PAGES)
        self.old: Final = _Vm(stack, bench, self.fd)
        self.new: Final = _Vm(stack, bench, self.fd)
        self.old.bind()
        self.before: Final = self.old.frames()

    def punch(self) -> str:
        """Punch the last page, and allocate it again; which VM got the event?"""
        counts = self.old.events, self.new.events
        last = _PAGES - 1
        parts.punch(self.fd, 1, last)
        parts.allocate(self.fd, 1, last)
        vms = (("old", self.old), ("new", self.new))
        heard = [
            name
            for (name, vm), count in zip(vms, counts, strict=True)
            if vm.events > count
        ]
        return " and ".join(heard) or "nobody"

    def get(self) -> str:
        """Whether any peer can get pages at this moment."""
        return parts.outcome(self.new.frames)

    def kept(self) -> str:
        """How many frames the VMs have in common, without the last page."""
        same = set(self.before[:-1]).intersection(self.new.frames())
        return f"{len(same)} of {_PAGES - 1}"


# Each way returns which VM gets the event of a punch between its two steps, what
# get-pfn returns then, and how many frames are the same at the end.


def _one_after_the_other(move: _Move) -> list[str]:
    move.old.unbind()
    found = [move.punch(), move.get()]
    move.new.bind()
    return [*found, move.kept()]


def _overlapping(move: _Move) -> list[str]:
    move.new.bind()
    found = [move.punch(), move.get()]
    move.old.unbind()
    return [*found, move.kept()]


def _in_two_phases(move: _Move) -> list[str]:
    move.new.bind(prepare=True)
    found = [move.punch(), move.get()]
    move.old.unbind()
    move.new.commit()
    return [*found, move.kept()]


def _too_soon(move: _Move) -> list[str]:
    move.new.bind(prepare=True)
    move.new.commit()
    return ["-", "-", move.kept()]


_WAYS: Final[tuple[tuple[str, Callable[[_Move], list[str]]], ...]] = (
    ("unbind, bind", _one_after_the_other),
    ("bind, unbind", _overlapping),
    ("prepare, unbind, commit", _in_two_phases),
    ("prepare, commit", _too_soon),
)


def _way(bench: Bench, way: Callable[[_Move], list[str]]) -> list[str]:
    with ExitStack() as stack:
        try:
            return ["ok", *way(_Move(stack, bench))]
        except OSError as exc:
            return [errnos.name(exc.errno), "-", "-", "-"]


def _run(lab: Lab) -> None:
    rows: list[list[str]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, **parts.SIMULATED) as bench:
            rows += [[bench.semantics, name, *_way(bench, way)] for name, way in _WAYS]
    lab.say("Between the steps a page is punched, and pages are got")
    head = "rules", "the VMs", "outcome", "who gets the event", "get-pfn"
    lab.table([*head, "same frames"], rows)


EXPERIMENT: Final = Experiment(
    name="link",
    question="How does a file move to another VM, and which VM gets events meanwhile?",
    run=_run,
    semantics=("guest_memfd-7.2", f"{__file__}:Linked", "in-place-next"),
)
