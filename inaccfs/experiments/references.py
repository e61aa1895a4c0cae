"""Row 3: what get-pfn gives its caller: a reference, nothing, or a locked page."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from inaccfs.client import connect
from inaccfs.client.errors import ControlError
from inaccfs.experiments import parts
from inaccfs.experiments.lab import Experiment
from inaccfs.kvm import VM
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import V10, load

if TYPE_CHECKING:
    from concurrent.futures import Future

    from inaccfs.client import File
    from inaccfs.experiments.lab import Bench, Lab

_PAGES: Final = 8


class Reference(V10):
    """v8 and guest_memfd: a reference, counted in struct page."""

    references = "counted"


class Revoke(V10):
    """Griffoul's provider: a frame is valid until revoke() has returned."""

    references = "none"


class PageLock(V10):
    """get_lock_pfn() of memfile_notifier: locked until put_unlock_pfn()."""

    references = "locked"


class _World:
    """A file, and another file that gets frames that become free."""

    def __init__(self, stack: ExitStack, bench: Bench) -> None:
        self._stack: Final = stack
        self.bench: Final = bench
        self.shim: Final = bench.shim
        rules = self.shim.query_semantics()
        self._rules: Final = rules
        self.locks: Final = rules.locks_pages
        self.puts: Final = rules.keeps_references
        self.fd: Final = parts.new_file(stack, self.shim, "file", _PAGES)
        self.neighbour: Final = parts.Neighbour(stack, self.shim, _PAGES)
        self._pool: Final = parts.threads(stack, 1)

    def user(self) -> File:
        """A user with a notifier for all pages, on a separate connection."""
        shim = self._stack.enter_context(connect(self.bench.mount.path))
        file = self._stack.enter_context(shim.file(self.fd))
        # Never unregister it: a user that was disconnected could not do so.
        parts.listen(file, self._rules, 0, _PAGES, lambda *_: None)
        return file

    def punch(self) -> None:
        parts.punch(self.fd, _PAGES)

    def punching(self) -> Future[Any]:
        """Start a punch; return when the daemon has begun it, or waits in it."""
        punches = self.shim.query_stats().punches
        future = self._pool.submit(self.punch)
        parts.until(lambda: self.shim.query_stats().punches > punches)
        return future


def _lives(user: File) -> bool:
    """Whether its connection lives: the daemon may end it to free its pages."""
    try:
        user.query()
    except ControlError:
        return False
    return True


# --- the workload, in parts: each returns some rows -----------------------------------


def _share(world: _World) -> dict[str, object]:
    """Another user gets pages in use, which are then punched."""
    user = world.user()
    frames = parts.frames(user.get_pfns(0, _PAGES))
    refused = 0
    with connect(world.bench.mount.path) as shim, shim.file(world.fd) as other:
        for page in range(_PAGES):
            try:
                other.get_pfn(page)
            except OSError as exc:
                if exc.errno != errno.EAGAIN:
                    raise
                refused += 1
    before = world.shim.query_stats().events
    punching = world.punching()
    puts = 0
    if not world.locks:
        punching.result(parts.PATIENCE)
    for frame in frames if world.puts else ():
        if not punching.done():
            # The refused punch has not sent an event.
            assert world.shim.query_stats().events == before
            puts += 1
        user.put_pfn(frame)
    punching.result(parts.PATIENCE)
    return {
        "another's get-pfn of pages in use: refused": refused,
        "a punch of pages in use waits for: puts": puts,
        "  and answers": world.shim.query_stats().events - before,
    }


def _fault(world: _World) -> dict[str, object]:
    """KVM's faults, each with a punch between get-pfn and the mapping."""
    waited = dropped = 0
    under_way: list[Future[Any]] = []
    watched = parts.Watched()

    def hook(point: str, _start: int, _end: int) -> None:
        nonlocal waited
        watched.hook(point)
        if point == "fault:before_install" and not under_way:
            punching = world.punching()
            under_way.append(punching)
            if not world.locks:
                punching.result(parts.PATIENCE)
            waited += not punching.done()

    with VM(world.shim, default_private=True, hooks=hook, invalidation=watched) as vm:
        parts.add_slot(vm, world.fd, 0, _PAGES)
        vcpu = vm.create_vcpu()
        for page in range(_PAGES):
            parts.allocate(world.fd, _PAGES)
            watched.forget()
            parts.read(vcpu, page * PAGE_SIZE, 1)
            under_way.pop().result(parts.PATIENCE)
            dropped += watched.dropped
        stale = len(vm.stale_sptes())
    return {
        "KVM, a punch between get-pfn and entry: waits": waited,
        "  faults dropped": dropped,
        "  stale entries": stale,
    }


def _forget(world: _World) -> dict[str, object]:
    """A user never puts; its pages are punched, and another file needs frames."""
    user = world.user()
    frames = parts.frames(user.get_pfns(0, _PAGES))
    world.punch()
    references = world.shim.query_pins().references
    kept = sum(each.count * each.references for each in references if each.punched)
    world.neighbour.take(_PAGES)
    return {
        "a user that never puts, after a punch: frames kept": kept,
        "  frames it knows that another file has": len(
            world.neighbour.frames.intersection(frames)
        ),
        "  its connection": "stays" if _lives(user) else "is ended",
    }


def _kill(world: _World) -> dict[str, object]:
    """A user is killed while it has references to all pages."""
    # Bind a notifier where get-pfn requires one.
    world.user()
    with world.shim.file(world.fd) as file:
        with parts.victim(world.bench.mount, world.fd, _PAGES):
            before = file.query().referenced
        parts.until(lambda: not file.query().referenced)
        left = file.query().referenced
    return {"a user that is killed: references before": before, "  and after": left}


def _punch_own(world: _World) -> dict[str, object]:
    """A user punches pages that it has got, in the thread that would put them."""
    user = world.user()
    user.get_pfns(0, _PAGES)
    world.punch()
    outcome = "returns" if _lives(user) else "deadlock"
    return {"a user that punches its own pages": outcome}


# How long a locked page that nobody puts may delay a punch; in the kernel there is no
# limit.
_LOCKED: Final = {"ack_timeout": 1.0}

# Whether users keep pages for ever in these parts.
_PARTS: Final = ((False, (_share, _fault, _kill)), (True, (_forget, _punch_own)))


def _run(lab: Lab) -> None:
    columns: list[dict[str, object]] = []
    for semantics in lab.semantics:
        locks = load.load(semantics).locks_pages
        cells: dict[str, object] = {}
        for keeps, some in _PARTS:
            options = parts.SIMULATED | (_LOCKED if keeps and locks else {})
            with lab.bench(semantics, **options) as bench:
                for part in some:
                    with ExitStack() as stack:
                        cells |= part(_World(stack, bench))
        columns.append(cells)
    lab.table(
        [f"of {_PAGES} pages", *map(lab.label, lab.semantics)],
        [(row, *(cells[row] for cells in columns)) for row in columns[0]],
    )


EXPERIMENT: Final = Experiment(
    name="references",
    question="What should get-pfn give its caller: a reference, a lock, or nothing?",
    run=_run,
    semantics=tuple(
        f"{__file__}:{name}" for name in ("Reference", "Revoke", "PageLock")
    ),
)
