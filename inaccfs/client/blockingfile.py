"""A file of the mount, in the blocking face."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from inaccfs.client import requests
from inaccfs.client.blockingpages import AttributesOfFile
from inaccfs.client.errors import ControlError
from inaccfs.client.notifying import Callbacks, Range
from inaccfs.client.threads import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self, Unpack

    from inaccfs.client.blocking import Client
    from inaccfs.client.notifying import Callback, Options
    from inaccfs.client.requests import Pfn, Request
    from inaccfs.control.messages import Extent, FileInfo, MappedExtent

T = TypeVar("T")


class File(AttributesOfFile):
    """A file of the mount. Offsets and counts are pages of the file's page size.

    Close it, or use it as a context manager: until then a file that was passed by fd is
    open here and in the daemon, and its mount is busy. Closing it does not drop
    references and notifiers.
    """

    def __init__(
        self, client: Client, name: str, fd: int | None, *, weak: bool = False
    ) -> None:
        """Use `Client.file`, or `Client.weak_file`."""
        self._client: Final = client
        self._name: Final = name
        # For the connection of the notifiers; None for a path. It is our own, unless
        # the file is weak.
        self._fd = fd
        self._weak: Final = weak
        self._closed = False
        client._files.add(self)

    def __repr__(self) -> str:
        return f"<File {self._name} of {self._client._commands.path}>"

    def _ask(self, request: Request[T]) -> T:
        return self._client._do(request)

    @property
    def _open_name(self) -> str:
        if self._closed:
            raise ValueError(f"{self!r} is closed")
        return self._name

    def get_pfn(self, offset: int) -> Pfn:
        """The frame of a page, with a reference: the page keeps it until put.

        Allocates the page if there is none. EINVAL past the end.
        """
        return self._client._do(requests.get_pfn(self._open_name, offset))

    def get_pfns(self, offset: int, count: int) -> list[Extent]:
        """The frames of *count* pages, in as few extents as possible.

        It takes a reference to each page, as `get_pfn` does.
        """
        return self._client._do(requests.get_pfns(self._open_name, offset, count))

    def put_pfn(self, pfn: int, count: int = 1, *, wait: bool = True) -> None:
        """Put a reference to each of *count* pages from frame *pfn* on.

        EINVAL, and nothing is put, if this client lacks a reference to one of them.
        Without *wait* it does not wait for the reply: an error is only logged, when the
        client is used next or closed.
        """
        do = self._client._do if wait else self._client._post
        do(requests.put_pfn(self._open_name, pfn, count))

    def put_pfns(self, extents: Iterable[requests.Run], *, wait: bool = True) -> None:
        """Put a reference to each page of *extents*, as `get_pfns` returns them.

        EINVAL if this client lacks a reference to one; others may have been put.
        """
        do = self._client._do if wait else self._client._post
        for command in requests.put_pfns(self._open_name, extents):
            do(requests.no_result(command))

    def get_memory(self) -> int:
        """An fd of the memory itself, as the guest uses it. The caller closes it.

        For root and the mount's owner; EPERM on a mount with --no-guest-access.
        """
        return self._client._do(requests.get_memory(self._open_name))

    def query(self) -> FileInfo:
        """Size, pages, references and the like."""
        return self._client._do(requests.query_file(self._open_name))

    def query_map(self) -> list[MappedExtent]:
        """The states of all pages up to the file's end, as extents."""
        return self._client._do(requests.query_map(self._open_name))

    def memory_failure(self, offset: int) -> None:
        """Report a page as poisoned. EOPNOTSUPP in semantics without memory-failure."""
        self._client._do(requests.memory_failure(self._open_name, offset))

    def register_notifier(
        self, invalidate: Callback | None = None, **options: Unpack[Options]
    ) -> Notifier:
        """Register callbacks for events of the file; use it as a context manager.

        A callback gets the first page and the page after the last. Its return tells the
        daemon that this client no longer uses the pages. *invalidate* works with all
        semantics: if these bracket a removal, it is called at the start, unless there
        is *invalidate_start*; *invalidate_end* is called at the end. *populate* is
        called for allocated pages and *error* for poisoned ones, in semantics with such
        events. With *with_frames* callbacks also get a list of extents: the fetched
        pages that are removed, in semantics whose events carry them. With *with_kinds*
        the next argument is "private", "shared" or "both", in semantics whose events
        carry that, otherwise None. With *with_zaps* the last argument is the start and
        the end of the pages to zap, if a conversion changes only some pages of a huge
        page; otherwise it is None, and all pages of the event are to be zapped.

        Callbacks run in a thread of the client, one at a time. They may use the client
        (commands wait for those of other threads) and unregister notifiers; registering
        one in a callback is EDEADLK. A callback must not change the same file through
        the mount (fallocate(2), truncate(2)): it would wait in the kernel for the very
        call that waits for it, until the daemon's --ack-timeout disconnects this
        client's notifiers. Nor may the thread that punches hold anything that the
        callback needs, such as the GIL, which `ctypes.PyDLL` calls keep.

        If a callback raises, that is logged and counts as a return; `unregister`, or
        else `Client.close`, raises the first such exception.
        """
        return self._register(Callbacks(invalidate, **options), None)

    def bind(
        self,
        start: int,
        end: int,
        invalidate: Callback | None = None,
        *,
        exclusive: bool | None = None,
        prepare: bool = False,
        **options: Unpack[Options],
    ) -> Notifier:
        """As `register_notifier`, for pages *start* to *end*, in semantics that bind.

        EINVAL, or EEXIST in some semantics, if the range overlaps another and one of
        the two is *exclusive*; in some semantics all are. EOPNOTSUPP in semantics whose
        notifiers are for files. With *prepare*, in semantics that have it,
        `Notifier.commit` makes the binding effective.
        """
        callbacks = Callbacks(invalidate, **options)
        return self._register(callbacks, Range(start, end, exclusive, prepare))

    def _register(self, callbacks: Callbacks, bound: Range | None) -> Notifier:
        name = self._open_name
        callbacks.check()
        listener = self._client._listen()
        made = listener.register(name, self._fd, callbacks, bound, weak=self._weak)
        return Notifier(listener, *made)

    def close(self) -> None:
        """Make the daemon close an fd that was passed. May be called again."""
        if self._closed:
            return
        self._closed = True
        if not self._close_fd():
            return
        # If the connection is lost, so is the name.
        with suppress(ControlError):
            self._client._do(requests.close_fd(self._name))

    def _close_fd(self) -> bool:
        """Close our own fd; False if there is none, or it is closed already."""
        self._client._files.discard(self)
        fd, self._fd = self._fd, None
        if fd is not None and not self._weak:
            os.close(fd)
        return fd is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
