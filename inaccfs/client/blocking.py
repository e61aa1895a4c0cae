"""The blocking face of a client: a command is a call, callbacks run in a thread.

Commands and notifiers travel on connections of their own: commands.py, threads.py.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from inaccfs.client import requests, wire
from inaccfs.client.blockingfile import File
from inaccfs.client.commands import Commands
from inaccfs.client.errors import ClientClosedError
from inaccfs.client.notifying import raise_or_note
from inaccfs.client.threads import Listener
from inaccfs.client.tracing import Trace
from inaccfs.control.messages import MFD_CLOEXEC, MFD_INACCESSIBLE

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from inaccfs.control.messages import (
        Command,
        FileInfo,
        NotifierInfo,
        Pins,
        Semantics,
        Stats,
        VersionInfo,
    )
    from inaccfs.shim.trace import What
    from inaccfs.status import Status


T = TypeVar("T")


def connect(target: str | os.PathLike[str]) -> Client:
    """A client of the mount at *target*, a mountpoint or the path of a control socket.

    Raises:
        NotMountedError: *target* is not one of these, or its daemon is dead.
        ControlError: the daemon is stopped, or does not admit this user.
        InaccfsError: the root of these; the message says what to do, in one line.
    """
    return Client(Commands(wire.find_socket(target)))


class Client:
    """A connection to a daemon; use it as a context manager, or close it.

    Threads may share it; commands are executed one after the other. Each method raises
    `OSError` with the errno of the daemon's refusal (ENOSYS if the daemon does not know
    the command), or `ControlError`, also an `OSError`, if the daemon has ended. The
    client survives a Ctrl-C while a command waits: if the command then succeeds, its
    references are put. A Ctrl-C while a message is being sent or read, which takes
    microseconds, ends the connection.

    References and notifiers belong to the client and end with it, or with its process.
    A child does not inherit them: after fork(2) the child's copy is closed, and its
    methods raise `ClientClosedError`; the parent's client works on.
    """

    def __init__(self, commands: Commands) -> None:
        """Use `connect`."""
        self._commands: Final = commands
        # Guards the next two.
        self._lock = threading.Lock()
        # Opened when the first notifier is registered.
        self._listener: Listener | None = None
        self._closed = False
        # The files that are not closed yet.
        self._files: Final[set[File]] = set()
        self._names: Final = itertools.count()
        self._do: Final = commands.do
        self._post: Final = commands.post
        _clients.add(self)

    def __repr__(self) -> str:
        return f"<Client of {self._commands.path}{', closed' if self._closed else ''}>"

    def execute(self, command: Command, fd: int | None = None) -> Any:  # noqa: ANN401 - the command's own
        """Execute any command; returns its result, or the fd that it sends.

        *fd* is sent with a command that takes one. register-notifier and bind raise
        `TypeError`: use `File.register_notifier` and `File.bind`, which answer events.
        """
        return self._do(requests.execute(command, fd))

    # --- files ------------------------------------------------------------------------

    def file(self, file: int | str | os.PathLike[str]) -> File:
        """A file of the mount: by an open fd of it, or its path from the mount's root.

        The fd must be open for writing. It is passed to the daemon and stays the
        caller's; a duplicate of it lives as long as the `File` does. Paths are for root
        and the mount's owner; a path without a file fails only when the file is used.
        """
        if not isinstance(file, int):
            return File(self, requests.check_path(os.fspath(file)), None)
        return self._file(file)

    def weak_file(self, fd: int) -> File:
        """A file that neither the `File` nor its notifiers, which use fd, keep open."""
        return self._file(fd, weak=True)

    def _file(self, fd: int, *, weak: bool = False) -> File:
        fdname = f"fd{next(self._names)}"
        own = fd if weak else os.dup(fd)
        try:
            self._do(requests.get_fd(fdname, own, weak=weak))
        except BaseException:
            if not weak:
                os.close(own)
            raise
        return File(self, fdname, own, weak=weak)

    def memfd_create(
        self,
        name: str,
        flags: int = MFD_CLOEXEC | MFD_INACCESSIBLE,
        size: int | None = None,
    ) -> int:
        """memfd_create(2) with MFD_INACCESSIBLE: an fd of a new file without a name.

        The file is truncated to *size* bytes, if there is one. EINVAL with
        MFD_ALLOW_SEALING and MFD_HUGETLB.
        """
        fdname = f"memfd{next(self._names)}"
        fd = self._do(requests.memfd_create(name, flags, size, fdname))
        try:
            # The file must live as long as its fds, as with memfd_create(2).
            self._do(requests.close_fd(fdname))
            os.set_inheritable(fd, not flags & MFD_CLOEXEC)
        except BaseException:
            os.close(fd)
            raise
        return fd

    # --- the mount --------------------------------------------------------------------

    def trace(self, *kinds: What) -> Trace:
        """Records of what happens to the files of the mount from now on.

        They are of these *kinds*, or of all: `inaccfs.control.messages.TraceRecord`
        lists the kinds. The trace has a connection of its own, so it may outlive the
        client. For root and the mount's owner.

            with client.trace("punch", "event", "answer") as trace:
                for record in trace:
                    print(record.kind, record.file, record.start, record.end)
        """
        return Trace(self._commands.path, kinds)

    def query_files(self) -> list[FileInfo]:
        """The files that are open or have fetched pages."""
        return self._do(requests.QUERY_FILES)

    def query_notifiers(self) -> list[NotifierInfo]:
        """The notifiers of all peers."""
        return self._do(requests.QUERY_NOTIFIERS)

    def query_pins(self) -> Pins:
        """Fetched pages, and the references to them."""
        return self._do(requests.QUERY_PINS)

    def query_stats(self) -> Stats:
        """The daemon's counters."""
        return self._do(requests.QUERY_STATS)

    def query_semantics(self) -> Semantics:
        """The rules of the mount."""
        return self._do(requests.QUERY_SEMANTICS)

    def query_status(self) -> Status:
        """What `inaccfs status` shows."""
        return self._do(requests.QUERY_STATUS)

    def query_version(self) -> VersionInfo:
        """The version of the daemon."""
        return self._do(requests.QUERY_VERSION)

    def quit(self) -> None:
        """End the daemon and unmount. For root and the owner."""
        self._do(requests.QUIT)

    # --- the end ----------------------------------------------------------------------

    def close(self) -> None:
        """Drop references and notifiers, and end the connection.

        Commands in progress raise `ClientClosedError`. This waits for a running
        callback, at most ten seconds, unless the callback itself calls it.

        Raises:
            BaseException: an exception of a callback that no unregister() has raised.
        """
        raise_or_note(self._close(), None)

    def _close(self) -> BaseException | None:
        """Close; return the exception to raise, if any."""
        with self._lock:
            self._closed = True
            listener = self._listener
        # Do this first: a running callback may need the rest.
        if listener is not None:
            listener.close()
        self._commands.close()
        for file in list(self._files):
            file._close_fd()
        return None if listener is None else listener.take_raised()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        raise_or_note(self._close(), error)

    def _listen(self) -> Listener:
        """The connection of the notifiers; a new one if the last one was lost."""
        with self._lock:
            if self._closed:
                raise ClientClosedError(f"{self!r}: connect anew")
            if self._listener is None or self._listener.over:
                self._listener = Listener(self._commands.path, self._listener)
            return self._listener

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._closed = True
        self._commands.after_fork()
        if self._listener is not None:
            self._listener.after_fork()
        for file in list(self._files):
            file._close_fd()


_clients: Final[weakref.WeakSet[Client]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for client in list(_clients):
        client._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
