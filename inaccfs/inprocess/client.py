"""A client of the shim for the simulated KVM, without a control socket.

It implements the protocols of `inaccfs.kvm.shim`, and does here what the daemon does in
control/session.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from inaccfs.client.errors import ConnectionLostError
from inaccfs.client.notifying import Callbacks
from inaccfs.inprocess.pages import AttributesOfFile, Got, got
from inaccfs.shim import memoryfailure
from inaccfs.shim.freezing import release
from inaccfs.shim.memory import Pinner

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from typing import Unpack

    from inaccfs.client.notifying import Callback, Options
    from inaccfs.client.requests import Run
    from inaccfs.inprocess.loop import BlockingLoop
    from inaccfs.inprocess.mount import Mount
    from inaccfs.semantics import Semantics
    from inaccfs.semantics.rules import Scope
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.notifiers import Notice

log = logging.getLogger(__name__)


class Due(NamedTuple):
    """An event whose callback is due."""

    notifier: Notifier
    notice: Notice
    # None for events without an answer.
    sequence: int | None

    def call(self) -> None:
        """Call the callback; `Notifier.unregister` raises its exception."""
        self.notifier._call(self.notice)

    def answer(self) -> None:
        """Answer the event. Call this after `call`."""
        self.notifier._answer(self.sequence)


Deliver: TypeAlias = "Callable[[Due], object]"
"""Gets each event of a notifier, inside the shim (`BlockingLoop.inside`). It must
arrange that `Due.call` and then `Due.answer` are called outside of the shim.
"""


def call_at_once(due: Due) -> None:
    """Call the callback in the thread that changes the file, and answer."""
    with due.notifier.file.client.mount.loop.outside():
        due.call()
        due.answer()


class Notifier:
    """A notifier, with the shim's interface and the client's."""

    def __init__(self, file: File, callbacks: Callbacks, deliver: Deliver) -> None:
        self.file: Final = file
        self.callbacks: Final = callbacks
        self._deliver: Final = deliver
        self._loop: Final = file.client.mount.loop
        # The threads that are in a callback.
        self._running: Final[list[Hashable]] = []
        # No callback is called any more.
        self._leaving = False
        # The first exception of a callback.
        self._raised: BaseException | None = None
        # Binds it, if that has only been prepared.
        self.prepared: Callable[[], None] | None = None

    # --- the shim's side --------------------------------------------------------------

    @property
    def who(self) -> int:
        """See `inaccfs.shim.notifiers.Notifier`."""
        return self.file.client.who

    @property
    def number(self) -> int:
        """See `inaccfs.shim.notifiers.Notifier`: nothing here needs one."""
        return 0

    def tell(self, notice: Notice, sequence: int | None) -> None:
        """See `inaccfs.shim.notifiers.Notifier`."""
        self._deliver(Due(self, notice, sequence))

    def evict(self) -> None:
        """See `inaccfs.shim.notifiers.Notifier`."""
        self.file.client.disconnect("it does not answer events")

    # --- the client's -----------------------------------------------------------------

    def commit(self) -> None:
        """Put into effect what `File.bind` has prepared."""
        commit, self.prepared = self.prepared, None
        if commit is None:
            raise OSError(errno.ENOENT, "it has not been prepared")
        try:
            commit()
        except OSError:
            self._leaving = True
            self.file.client.notifiers.discard(self)
            raise

    @property
    def registered(self) -> bool:
        """False after `unregister`, and after the client was disconnected."""
        return not self._leaving

    def _call(self, notice: Notice) -> None:
        with self._loop.inside():
            if self._leaving:
                return
            self._running.append(self._loop.me())
        try:
            if (callback := self.callbacks.of(notice.event)) is not None:
                self.callbacks.call(callback, *notice[1:])
        except BaseException as exc:
            log.exception("a callback for %s raised", notice.event)
            self._raised = self._raised or exc
        finally:
            with self._loop.inside():
                self._running.remove(self._loop.me())
                self._loop.changed()

    def _answer(self, sequence: int | None) -> None:
        notifiers = self.file.inode.notifiers
        with self._loop.inside():
            # If it was unregistered meanwhile, that counted as its answer.
            if sequence is not None and notifiers.waiting(self) == sequence:
                notifiers.answer(self, sequence)

    def unregister(self) -> None:
        """Stop callbacks. Waits for running ones, except for one that is calling this.

        Raises:
            ConnectionLostError: the client has been disconnected.
            BaseException: the first exception of a callback.
        """
        loop, notifiers = self._loop, self.file.inode.notifiers
        client = self.file.client
        with loop.inside():
            lost = client.lost
            self._leaving = True
            if loop.me() in self._running:
                # This thread is in the invalidation, and cannot wait for its end.
                notifiers.drop(self)
            else:
                loop.wait_for(lambda: not self._running, "a callback to return")
        if self in notifiers:
            loop.run(notifiers.unregister(self))
        client.notifiers.discard(self)
        raised, self._raised = self._raised, None
        if raised is not None:
            raise raised
        if lost is not None:
            raise lost.again()

    def leave(self) -> None:
        """The client has closed."""
        self._leaving = True
        self.file.inode.notifiers.drop(self)


class Pin(NamedTuple):
    """Fetched pages of a file: see `inaccfs.kvm.shim.ShimPin`."""

    ino: int
    offset: int
    pfn: int
    count: int  # type: ignore[assignment] # tuple has a method of that name
    order: int


class Pins(NamedTuple):
    """The return of `Client.query_pins`."""

    extents: list[Pin]


class FileInfo(NamedTuple):
    """The return of `File.query`. *page_size* is bytes."""

    ino: int
    page_size: int


class File(AttributesOfFile):
    """As `inaccfs.client.File`. Offsets and counts are pages."""

    def __init__(self, client: Client, fd: int) -> None:
        """Use `Client.file`."""
        self.client: Final = client
        self._inode: Final = client.mount.inode(fd)
        self.ino: Final = os.fstat(fd).st_ino
        client.files.add(self)

    @property
    def inode(self) -> InaccessibleFile:
        """The shim's inode."""
        return self._inode

    def _use(self) -> InaccessibleFile:
        self.client.check()
        if self not in self.client.files:
            raise OSError(errno.EBADF, "the file is closed")
        return self._inode

    @property
    def _loop(self) -> BlockingLoop:
        return self.client.mount.loop

    @property
    def _holder(self) -> Client:
        return self.client

    def get_pfn(self, offset: int) -> Got:
        """See `inaccfs.client.File.get_pfn`."""
        return self.get_pfns(offset, 1)[0]

    def get_pfns(self, offset: int, count: int) -> list[Got]:
        """See `inaccfs.client.File.get_pfns`."""
        inode = self._use()

        async def get() -> list[Got]:
            pages = inode.pages
            extents, moved = await pages.get(self.client, offset, offset + count)
            found = [got(inode, extent) for extent in extents]
            await pages.moved.tell(moved)
            return found

        return self.client.mount.loop.run(get())

    def put_pfn(self, pfn: int, count: int = 1, *, wait: bool = True) -> None:
        """See `inaccfs.client.File.put_pfn`; without *wait* it raises, too."""
        inode = self._use()
        with self.client.mount.loop.inside():
            inode.pages.put(self.client, pfn, count)

    def put_pfns(self, extents: Iterable[Run], *, wait: bool = True) -> None:
        """See `inaccfs.client.File.put_pfns`; without *wait* it raises, too."""
        for extent in extents:
            self.put_pfn(extent.pfn, extent.count)

    def get_memory(self) -> int:
        """See `inaccfs.client.File.get_memory`."""
        if not self.client.mount.guest_access:
            raise PermissionError(errno.EPERM, "this mount has no guest access")
        return os.dup(self._use().fd)

    def query(self) -> FileInfo:
        """The inode number, size and so on."""
        return FileInfo(self.ino, self._use().page_size)

    def memory_failure(self, offset: int) -> None:
        """See `inaccfs.client.File.memory_failure`."""
        report = memoryfailure.report(self._use(), offset, self.client.who)
        self._loop.run(report)

    def register_notifier(
        self, invalidate: Callback | None = None, **options: Unpack[Options]
    ) -> Notifier:
        """See `inaccfs.client.File.register_notifier`."""
        callbacks = Callbacks(invalidate, **options).check()
        notifiers = self._use().notifiers
        self._check_scope("file")
        made = Notifier(self, callbacks, self.client.deliver)
        self.client.mount.loop.run(notifiers.register(made))
        return self._registered(made)

    def bind(
        self,
        start: int,
        end: int,
        invalidate: Callback | None = None,
        *,
        prepare: bool = False,
        **options: Unpack[Options],
    ) -> Notifier:
        """See `inaccfs.client.File.bind`."""
        callbacks = Callbacks(invalidate, **options).check()
        inode = self._use()
        self._check_scope("range")
        if start >= end or inode.ends_before(end * inode.page_size):
            raise OSError(errno.EINVAL, f"no pages from {start} to {end}")
        made = Notifier(self, callbacks, self.client.deliver)
        exclusive = self.client.mount.semantics.exclusive

        def commit() -> None:
            bind = inode.notifiers.bind(made, start, end, exclusive=exclusive)
            self.client.mount.loop.run(bind)

        if not prepare:
            commit()
        elif self.client.mount.semantics.has_commit_bind:
            made.prepared = commit
        else:
            raise OSError(errno.EOPNOTSUPP, "bindings take effect at once")
        return self._registered(made)

    def _registered(self, made: Notifier) -> Notifier:
        self.client.notifiers.add(made)
        return made

    def _check_scope(self, scope: Scope) -> None:
        if self.client.mount.semantics.scope != scope:
            raise OSError(
                errno.EOPNOTSUPP, "these semantics have the other kind of notifiers"
            )

    def close(self) -> None:
        """Close the file. The client keeps its notifiers and references."""
        self.client.files.discard(self)


class Client:
    """As `inaccfs.client.Client` for a VM. It holds the references that it takes."""

    def __init__(self, mount: Mount, deliver: Deliver, who: int) -> None:
        """Use `Mount.connect`."""
        self.mount: Final = mount
        # The client's number, for traces.
        self.who: Final = who
        self.deliver: Final = deliver
        # The open files, and the registered notifiers.
        self.files: Final[set[File]] = set()
        self.notifiers: Final[set[Notifier]] = set()
        # Why the client cannot be used any more; None if it can.
        self.lost: ConnectionLostError | None = None

    def file(self, file: int, /) -> File:
        """The file of an fd. EINVAL if it is not of this mount."""
        self.check()
        return File(self, file)

    def query_semantics(self) -> Semantics:
        """The rules of the mount."""
        return self.mount.semantics

    def query_pins(self) -> Pins:
        """The fetched pages of all files."""
        self.check()
        with self.mount.loop.inside():
            return Pins(
                [
                    Pin(ino, *extent)
                    for ino, file in self.mount.files()
                    if file.pages.memory is not None
                    for extent in file.pages.memory.frames.extents()
                ]
            )

    def check(self) -> None:
        """Raise `ConnectionLostError` if it has been disconnected."""
        if self.lost is not None:
            raise self.lost.again()

    def evict_holder(self) -> None:
        """See `inaccfs.shim.memory.Holder`."""
        self.disconnect("it keeps pages locked")

    def disconnect(self, why: str) -> None:
        """Inside the shim: drop all that it holds, as when a connection ends."""
        if self.lost is None:
            self.lost = ConnectionLostError(f"the daemon has hung up: {why}")
            for notifier in list(self.notifiers):
                notifier.leave()
            self._drop_references()

    def close(self) -> None:
        """Drop its notifiers and references."""
        for notifier in list(self.notifiers):
            notifier.unregister()
        with self.mount.loop.inside():
            self._drop_references()

    def _drop_references(self) -> None:
        for _, file in self.mount.files():
            release(file, self)
            if file.pages.memory is not None:
                for holder in (self, Pinner(self)):
                    for _ in file.pages.memory.drop(holder):
                        pass
