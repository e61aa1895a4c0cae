"""Private and shared pages of a file, and its content, in the blocking face."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, TypeVar

from inaccfs.client import requests
from inaccfs.client.window import Sliced, bus_error, pieces

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inaccfs.client.requests import Request, Run
    from inaccfs.control.messages import Extent, MemoryAttributes

T = TypeVar("T")


class AttributesOfFile(ABC):
    """A file's methods for semantics that keep attributes in it, or share its pages.

    Offsets and counts are pages. In other semantics methods raise EOPNOTSUPP.
    """

    @property
    @abstractmethod
    def _open_name(self) -> str:
        """The name by which the daemon knows the file."""

    @abstractmethod
    def _ask(self, request: Request[T]) -> T:
        """Execute a command."""

    def set_memory_attributes(self, offset: int, count: int, private: bool) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES2: make pages private, or shared, for all VMs.

        A conversion to private raises `PinnedError`, EAGAIN, if a page has references;
        `offset` is the page. EINVAL past the end; EPERM for a frozen file.
        """
        name = self._open_name
        self._ask(requests.set_memory_attributes(name, offset, count, private=private))

    def query_memory_attributes(self) -> list[MemoryAttributes]:
        """Which pages are private: ranges that cover the file, as few as possible."""
        return self._ask(requests.query_memory_attributes(self._open_name))

    def query_memory_attribute(self, offset: int) -> MemoryAttributes:
        """kvm_gmem_is_private(): the range from page *offset* on with one attribute.

        It does not wait for a conversion in progress. EINVAL past the end.
        """
        return self._ask(requests.query_memory_attribute(self._open_name, offset))

    def populate(
        self,
        offset: int,
        count: int,
        source: AttributesOfFile | None = None,
        source_offset: int = 0,
    ) -> int:
        """kvm_gmem_populate(): fill private pages from pages of *source*.

        *source* is a `File` by fd. Without it, the pages have their content already.
        Returns how many pages were filled; fails only if the first one fails: EINVAL
        for a shared page and past the end, EFAULT for a private page of *source*.
        """
        name = None if source is None else source._open_name
        return self._ask(
            requests.populate(self._open_name, offset, count, name, source_offset)
        )

    def freeze(self) -> None:
        """kvm_gmem_freeze(): no page is added or removed before `unfreeze`.

        The end of the client unfreezes the file, too. EPERM if another client has
        frozen the file, EBUSY if this one has.
        """
        self._ask(requests.freeze(self._open_name))

    def unfreeze(self) -> None:
        """Undo `freeze`.

        EINVAL if it is not frozen; EPERM if another client has frozen it.
        """
        self._ask(requests.unfreeze(self._open_name))

    def migrate(self, offset: int, count: int) -> None:
        """Move pages to other simulated frames, as compaction would.

        EOPNOTSUPP for private pages; EAGAIN for pages with references.
        """
        self._ask(requests.migrate(self._open_name, offset, count))

    def pin_pages(self, offset: int, count: int = 1) -> list[Extent]:
        """pin_user_pages(), FOLL_LONGTERM: pin shared pages.

        `PageError`, EFAULT, for a private page.
        """
        return self._ask(requests.pin_pages(self._open_name, offset, count))

    def unpin_pages(self, extents: Iterable[Run]) -> None:
        """unpin_user_pages(): give back a pin of each page of *extents*."""
        for command in requests.unpin_pages(self._open_name, extents):
            self._ask(requests.no_result(command))

    def shared_window(self) -> SharedWindow:
        """Access to shared pages, as if through a mapping of the file."""
        return SharedWindow(self)


class SharedWindow(Sliced):
    """A model of the host's mapping of a file's shared pages. Offsets are bytes.

    Each access acts like a page fault: it waits for punches and conversions, fills
    holes, and pins nothing, so a conversion to private unmaps the page. A page that is
    private or past the end raises `BusError`, where a process with a mapping would get
    SIGBUS. Do not use it in a callback of the file's own notifiers: it would wait for
    itself.

        window[0:5] = b"hello"
        window.read(0, 5)
    """

    def __init__(self, file: AttributesOfFile) -> None:
        """Use `File.shared_window`."""
        self._file: Final = file

    def read(self, offset: int, count: int) -> bytes:
        """Read *count* bytes, page after page."""
        name, found = self._file._open_name, bytearray()
        with bus_error():
            for at, size in pieces(offset, count):
                found += self._file._ask(requests.read_shared(name, at, size))
        return bytes(found)

    def write(self, offset: int, data: bytes) -> None:
        """Write *data*. The data before a page that raises was written."""
        name = self._file._open_name
        with bus_error():
            for at, size in pieces(offset, len(data)):
                part = data[at - offset : at - offset + size]
                self._file._ask(requests.write_shared(name, at, part))
