"""Helpers of the experiments on races and references."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Any, Final

from inaccfs import children, errnos
from inaccfs.errors import InaccfsError
from inaccfs.kvm import MemoryFaultExit
from inaccfs.kvm.invalidation import Invalidation
from inaccfs.kvm.uapi import KVM_MEM_PRIVATE, PAGE_SHIFT
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from contextlib import ExitStack
    from typing import Unpack

    from inaccfs.client import Client, File, Notifier
    from inaccfs.client.notifying import Callback, Options
    from inaccfs.control.messages import Extent, Semantics
    from inaccfs.kvm import VM, Vcpu
    from inaccfs.launch import Mount

# Anything that takes longer counts as a hang. Only a deadlock does, however busy the
# machine is.
PATIENCE: Final = 60.0

# Options of a mount with simulated frames, which are reused in a known order: the next
# allocation gets the frame that was freed last.
SIMULATED: Final[dict[str, Any]] = {
    "size": "4m",
    "pfn_source": "simulated",
    "options": "simulated-order=0",
}

_VICTIM: Final = """
import sys, inaccfs
try:
    with inaccfs.connect(sys.argv[1]) as shim:
        shim.file(int(sys.argv[2])).get_pfns(0, int(sys.argv[3]))
        print("got", flush=True)
        sys.stdin.read()
except inaccfs.InaccfsError as exc:
    print(exc)
"""


def allocate(fd: int, pages: int, first: int = 0) -> None:
    """Allocate pages of a file, from page *first* on; the size stays."""
    fallocate(fd, FALLOC_FL_KEEP_SIZE, first << PAGE_SHIFT, pages << PAGE_SHIFT)


def punch(fd: int, pages: int, first: int = 0) -> None:
    """Punch pages of a file, from page *first* on.

    Returns when all notifiers have answered.
    """
    fallocate(fd, PUNCH, first << PAGE_SHIFT, pages << PAGE_SHIFT)


def new_file(stack: ExitStack, shim: Client, name: str, pages: int) -> int:
    """Make a nameless file and allocate it; *stack* closes its fd."""
    fd = shim.memfd_create(name, size=pages << PAGE_SHIFT)
    stack.callback(os.close, fd)
    allocate(fd, pages)
    return fd


def add_slot(vm: VM, fd: int, page: int, pages: int) -> None:
    """Add a slot whose private half is these pages of a file."""
    vm.set_user_memory_region(
        0,
        0,
        pages << PAGE_SHIFT,
        private_fd=fd,
        private_offset=page << PAGE_SHIFT,
        flags=KVM_MEM_PRIVATE,
    )


def read(vcpu: Vcpu, gpa: int, size: int) -> bytes:
    """The data that a guest reads; empty if it exits because of an unfilled hole."""
    try:
        return vcpu.read(gpa, size)
    except MemoryFaultExit as exc:
        if exc.errno != errno.ENOENT:
            raise
        return b""


def listen(
    file: File,
    rules: Semantics,
    start: int,
    end: int,
    invalidate: Callback | None = None,
    **callbacks: Unpack[Options],
) -> Notifier:
    """Register a notifier for pages, by file or by range as the rules say."""
    if rules.by_range:
        return file.bind(start, end, invalidate, **callbacks)
    return file.register_notifier(invalidate, **callbacks)


def outcome(call: Callable[[], object]) -> str:
    """ "ok", or the name of the errno that a call fails with."""
    try:
        call()
    except OSError as exc:
        return errnos.name(exc.errno)
    return "ok"


def kept(shim: Client) -> int:
    """Frames that are not free only because of references to punched pages."""
    references = shim.query_pins().references
    return sum(each.count for each in references if each.punched)


@contextmanager
def victim(mount: Mount, fd: int, pages: int) -> Iterator[None]:
    """Run a process that gets the first pages of a file; kill it after the block.

    Raises:
        InaccfsError: it cannot start, or cannot connect.
    """
    words = (str(word) for word in (mount.path, fd, pages))
    with children.starting("the process that is to be killed"):
        started = subprocess.Popen(
            [sys.executable, "-c", _VICTIM, *words],
            pass_fds=[fd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    with started as process:
        try:
            assert process.stdout is not None
            if (said := process.stdout.readline().decode().rstrip("\n")) != "got":
                raise InaccfsError(f"the process that is to be killed: {said}")
            yield
        finally:
            children.kill(process)


def threads(stack: ExitStack, count: int) -> ThreadPoolExecutor:
    """A pool whose threads run from the beginning, until *stack* is closed.

    They are for callbacks, in which the failure to start a thread is a traceback.
    """
    pool = stack.enter_context(ThreadPoolExecutor(count))
    may_go_on = Event()
    try:
        for _ in range(count):
            pool.submit(may_go_on.wait)
    finally:
        may_go_on.set()
    return pool


def frames(extents: Iterable[Extent]) -> list[int]:
    """All frames of some extents, of a file of small pages."""
    return [each.pfn + index for each in extents for index in range(each.count)]


def until(ready: Callable[[], object]) -> None:
    """Poll until *ready*: the daemon sends no message when a call begins to wait."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError("the daemon did not reach the expected state")
        time.sleep(0.001)


def until_last(shim: Client) -> None:
    """In a callback: wait until all other notifiers have answered the event."""
    until(lambda: sum(each.waiting is not None for each in shim.query_notifiers()) == 1)


class Neighbour:
    """The user of another file, whose pages get free frames."""

    def __init__(self, stack: ExitStack, shim: Client, pages: int) -> None:
        fd = new_file(stack, shim, "neighbour", pages)
        self._file: Final = stack.enter_context(shim.file(fd))
        rules = shim.query_semantics()
        stack.enter_context(listen(self._file, rules, 0, pages, lambda *_: None))
        self._pages = 0
        # The frames of this file so far.
        self.frames: Final[set[int]] = set()

    def take(self, pages: int = 1) -> None:
        """Get more pages."""
        self.frames.update(frames(self._file.get_pfns(self._pages, pages)))
        self._pages += pages


class Watched(Invalidation):
    """A retry protocol that records the faults of its KVM.

    With *asks* off it lacks patch 4/8: a fault installs whatever it has found.
    """

    __slots__ = ("_asks", "seen")

    def __init__(self, *, asks: bool = True) -> None:
        super().__init__()
        self._asks: Final = asks
        # Since `forget`: "begun" for each fault, each followed by the fault's outcome.
        self.seen: list[str] = []

    @property
    def dropped(self) -> bool:
        """Whether the first fault was dropped; later ones depend on timing."""
        return self.seen[1:2] == ["dropped"]

    def retry(self, seq: int, start: int, end: int) -> bool:
        """Called under mmu_lock, which stays locked until the fault is installed."""
        dropped = self._asks and super().retry(seq, start, end)
        self.seen.append("dropped" if dropped else "installed")
        return dropped

    def hook(self, point: str) -> None:
        """The VM's hook must call this."""
        if point == "fault:begin":
            self.seen.append("begun")

    def forget(self) -> None:
        """Forget the faults so far."""
        self.seen = []

    def follow(self, access: Future[bytes]) -> None:
        """Wait until an access is over, or its first fault was dropped or refused."""
        # After EAGAIN of get-pfn the fault begins again: the second entry is "begun",
        # too.
        until(lambda: access.done() or len(self.seen) > 1)
        if access.done() or self.seen[1] == "installed":
            access.result(PATIENCE)
