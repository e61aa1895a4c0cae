"""What the experiments on races and references share."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from inaccfs.kvm import MemoryFaultExit
from inaccfs.kvm.invalidation import Invalidation
from inaccfs.kvm.uapi import KVM_MEM_PRIVATE, PAGE_SHIFT
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from contextlib import ExitStack

    from inaccfs.client import Client, File, Notifier
    from inaccfs.control.messages import Extent
    from inaccfs.kvm import VM, Vcpu
    from inaccfs.launch import Mount

# How long anything may take before it is taken for a hang.
PATIENCE: Final = 30.0

# Of a mount: frames that are made up, for these come back in a known order. Whoever
# asks next after one was freed gets that one.
SIMULATED: Final[dict[str, Any]] = {
    "size": "4m",
    "pfn_source": "simulated",
    "options": "simulated-order=0",
}

_VICTIM: Final = """
import sys, inaccfs
with inaccfs.connect(sys.argv[1]) as shim:
    shim.file(int(sys.argv[2])).get_pfns(0, int(sys.argv[3]))
    print("got", flush=True)
    sys.stdin.read()
"""


def allocate(fd: int, pages: int) -> None:
    """Have memory for the first pages of a file."""
    fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, pages << PAGE_SHIFT)


def punch(fd: int, pages: int) -> None:
    """Punch the first pages of a file; returns when all have answered."""
    mode = PUNCH
    fallocate(fd, mode, 0, pages << PAGE_SHIFT)


def new_file(stack: ExitStack, shim: Client, name: str, pages: int) -> int:
    """A file without a name, with all its memory; its fd lasts as long as *stack*."""
    fd = shim.memfd_create(name, size=pages << PAGE_SHIFT)
    stack.callback(os.close, fd)
    allocate(fd, pages)
    return fd


def add_slot(vm: VM, fd: int, page: int, pages: int) -> None:
    """Let a guest's memory be these pages of a file."""
    vm.set_user_memory_region(
        *(0, 0, pages << PAGE_SHIFT),
        private_fd=fd,
        private_offset=page << PAGE_SHIFT,
        flags=KVM_MEM_PRIVATE,
    )


def read(vcpu: Vcpu, gpa: int, size: int) -> bytes:
    """What a guest reads; nothing if it exits for a hole that get-pfn does not fill."""
    try:
        return vcpu.read(gpa, size)
    except MemoryFaultExit as exc:
        if exc.errno != errno.ENOENT:
            raise
        return b""


def listen(
    file: File,
    start: int,
    end: int,
    scope: str,
    callback: Callable[..., object],
    *,
    with_frames: bool = False,
) -> Notifier:
    """Be told of pages, whether notifiers are for files or for ranges."""
    if scope == "range":
        return file.bind(start, end, callback, with_frames=with_frames)
    return file.register_notifier(callback, with_frames=with_frames)


@contextmanager
def victim(mount: Mount, fd: int, pages: int) -> Iterator[None]:
    """A process that has got the first pages of a file; killed at the block's end."""
    words = (str(word) for word in (mount.path, fd, pages))
    with subprocess.Popen(
        [sys.executable, "-c", _VICTIM, *words],
        pass_fds=[fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"got\n"
            yield
        finally:
            process.kill()


def frames(extents: Iterable[Extent]) -> list[int]:
    """All frames of some extents, of a file of small pages."""
    return [each.pfn + index for each in extents for index in range(each.count)]


def until(ready: Callable[[], object]) -> None:
    """Ask until it is so: what has come to wait in the daemon sends no message."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError("the daemon has not come to what was waited for")
        time.sleep(0.001)


def until_last(shim: Client) -> None:
    """In a callback: wait until all others have answered the event."""
    until(lambda: sum(each.waiting is not None for each in shim.query_notifiers()) == 1)


class Neighbour:
    """The user of another file, whose pages get what frames are free."""

    def __init__(self, stack: ExitStack, shim: Client, pages: int) -> None:
        fd = new_file(stack, shim, "neighbour", pages)
        self._file: Final = stack.enter_context(shim.file(fd))
        scope = shim.query_semantics().scope
        stack.enter_context(listen(self._file, 0, pages, scope, lambda *_: None))
        self._pages = 0
        # The frames that are this file's by now.
        self.frames: Final[set[int]] = set()

    def take(self, pages: int = 1) -> None:
        """Get some more."""
        self.frames.update(frames(self._file.get_pfns(self._pages, pages)))
        self._pages += pages


class Watched(Invalidation):
    """The retry protocol of a KVM whose faults can be followed.

    With *asks* off it lacks patch 4/8: a fault installs whatever it has found.
    """

    __slots__ = ("_asks", "seen")

    def __init__(self, *, asks: bool = True) -> None:
        super().__init__()
        self._asks: Final = asks
        # Since `forget`: "begun" for each fault, and after it what became of it.
        self.seen: list[str] = []

    @property
    def dropped(self) -> bool:
        """Whether the first fault was dropped; later ones are as chance has it."""
        return self.seen[1:2] == ["dropped"]

    def retry(self, seq: int, start: int, end: int) -> bool:
        """Asked under mmu_lock, which is held until the fault is installed."""
        dropped = self._asks and super().retry(seq, start, end)
        self.seen.append("dropped" if dropped else "installed")
        return dropped

    def hook(self, point: str) -> None:
        """To be called by the VM's."""
        if point == "fault:begin":
            self.seen.append("begun")

    def forget(self) -> None:
        """What has been is of no interest any more."""
        self.seen = []

    def follow(self, access: Future[bytes]) -> None:
        """Wait until an access is over, or its first fault was dropped or refused."""
        # Refused is EAGAIN of get-pfn: the second is another "begun".
        until(lambda: access.done() or len(self.seen) > 1)
        if access.done() or self.seen[1] == "installed":
            access.result(PATIENCE)
