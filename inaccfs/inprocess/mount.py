"""The files of a mount that is not mounted, and the system calls that change them."""

from __future__ import annotations

import errno
import itertools
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs.errnos import os_error
from inaccfs.inprocess.client import Client, call_at_once
from inaccfs.inprocess.loop import ThreadLoop
from inaccfs.semantics import V8
from inaccfs.shim import hostaccess
from inaccfs.shim.call import Call
from inaccfs.shim.file import LATER, UNDER_WAY, InaccessibleFile
from inaccfs.shim.frameoptions import FRAME_BYTES, SimulatedMemory
from inaccfs.shim.simulated import SimulatedSource
from inaccfs.shim.superblock import Superblock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from inaccfs.inprocess.client import Deliver
    from inaccfs.inprocess.loop import BlockingLoop
    from inaccfs.semantics import Semantics
    from inaccfs.shim.buddy import Watch
    from inaccfs.shim.notifiers import Notifiers


class _Evictor:
    """Evicts no notifier: events that are delivered at once are answered at once."""

    running = True

    def watch(self, notifiers: Notifiers, sequence: int) -> None:
        """See `inaccfs.shim.order.Evictor`."""

    def forget(self, notifiers: Notifiers) -> None:
        """See `inaccfs.shim.order.Evictor`."""


class Mount:
    """The state of a daemon. Close it after its clients, or use a with block.

    Threads may share it. Methods raise `OSError`, as the system calls do.
    """

    def __init__(
        self,
        semantics: Semantics | None = None,
        *,
        memory: SimulatedMemory | None = None,
        guest_access: bool = True,
        ack_seconds: float = 10.0,
        on_change: Callable[[int, int, int], object] | None = None,
        on_frames: Watch | None = None,
        loop: BlockingLoop | None = None,
    ) -> None:
        """*semantics* defaults to v8; the frames are those of *memory*.

        Without *guest_access* get-memory is EPERM. *on_change* is called before pages
        are added or removed with events, with the file, an offset and a length in
        bytes; it may block. *on_frames* is called as `Buddy` says, and must not block.
        """
        self.semantics: Final[Semantics] = V8() if semantics is None else semantics
        self.loop: Final = ThreadLoop() if loop is None else loop
        self.guest_access: Final = guest_access
        self._on_change: Final = on_change
        self.superblock: Final = Superblock(
            self.semantics,
            FRAME_BYTES,
            frames=SimulatedSource(memory or SimulatedMemory(), on_frames),
            ack_seconds=ack_seconds,
            # What may block takes a task.
            ack_timeouts=_Evictor() if on_change is None else None,
            loop=self.loop,
            on_change=self._change,
        )
        # The numbers of clients.
        self._numbers: Final = itertools.count(1)
        # By st_dev and st_ino: each file with the mount's own fd of it.
        self._files: Final[dict[tuple[int, int], InaccessibleFile]] = {}

    def connect(self, deliver: Deliver = call_at_once) -> Client:
        """A new client. *deliver* is called with each event; see `Due`."""
        return Client(self, deliver, next(self._numbers))

    def files(self) -> Iterator[tuple[int, InaccessibleFile]]:
        """All files, each with its inode number."""
        return ((ino, file) for (_, ino), file in self._files.items())

    def inode(self, fd: int) -> InaccessibleFile:
        """The inode of an open file. EINVAL if it is not of this mount."""
        found = os.fstat(fd)
        file = self._files.get((found.st_dev, found.st_ino))
        if file is None:
            raise OSError(errno.EINVAL, "the fd is no file of this mount")
        return file

    # --- system calls -----------------------------------------------------------------

    def memfd_create(self, name: str, size: int = 0) -> int:
        """memfd_create(2), and ftruncate(2) to *size* bytes: an fd of a new file."""
        with ExitStack() as undo:
            fd = os.memfd_create(name)
            undo.callback(os.close, fd)
            with self.loop.inside():
                file = InaccessibleFile(fd, self.superblock)
            if size:
                self.loop.run(file.set_size(size))
            made = os.dup(fd)
            undo.pop_all()
        found = os.fstat(fd)
        with self.loop.inside():
            self._files[found.st_dev, found.st_ino] = file
        return made

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2). Returns when all notifiers have answered its events."""
        file, loop = self.inode(fd), self.loop
        done: list[Exception | None] = []
        with loop.inside():
            begun = file.begin(mode, offset, length, lambda: done.append)
            if begun is UNDER_WAY:
                loop.wait_for(lambda: bool(done), "answers")
                if done[0] is not None:
                    raise done[0]
        if begun is LATER:
            loop.run(file.finish(Call(mode, offset, length), loop.event()))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite(2), in semantics by which it fills files. Returns the size of *data*.

        EINVAL or ENODEV, as on a mount; elsewhere the errno of writes.
        """
        rules = self.semantics
        if not rules.takes_writes:
            raise os_error(rules.read_errno)
        file = self.inode(fd)
        self.loop.run(hostaccess.write(file, offset, data))
        return len(data)

    def ftruncate(self, fd: int, size: int) -> None:
        """ftruncate(2), to *size* bytes."""
        self.loop.run(self.inode(fd).set_size(size))

    def _change(self, fd: int, offset: int, length: int) -> None:
        if self._on_change is not None:
            with self.loop.outside():
                self._on_change(fd, offset, length)

    # --- the end ----------------------------------------------------------------------

    def close(self) -> None:
        """Drop all files. Their fds cannot be used here any more."""
        while self._files:
            _, file = self._files.popitem()
            file.close()
            os.close(file.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
