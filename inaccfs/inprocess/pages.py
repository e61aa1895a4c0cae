"""Private and shared pages of a file, and its content, in one process."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.client.window import Sliced
from inaccfs.shim import conversions, freezing, hostaccess, migration, populating
from inaccfs.shim.call import Conversion
from inaccfs.shim.frames import Extent
from inaccfs.shim.memory import Pinner
from inaccfs.shim.populating import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inaccfs.client.requests import Run
    from inaccfs.inprocess.loop import BlockingLoop
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.memory import Holder


class MemoryAttributes(NamedTuple):
    """Pages that are all private, or all shared."""

    offset: int
    count: int  # type: ignore[assignment] # tuple has a method of that name
    private: bool


class Got(Extent):
    """An extent that get-pfn returns."""

    # Whether its pages are private; None if attributes are not kept in the file.
    private: bool | None = None


def got(file: InaccessibleFile, extent: Extent) -> Got:
    """*extent*, whose pages have one attribute."""
    found = Got(*extent)
    if file.superblock.converts:
        found.private = file.attributes.is_private(extent.offset)
    return found


class AttributesOfFile(ABC):
    """See `inaccfs.client.blockingpages.AttributesOfFile`."""

    @abstractmethod
    def _use(self) -> InaccessibleFile:
        """The shim's inode, while the file is open."""

    @property
    @abstractmethod
    def _loop(self) -> BlockingLoop: ...

    @property
    @abstractmethod
    def _holder(self) -> Holder:
        """The client, as the holder of references and freezes."""

    def set_memory_attributes(self, offset: int, count: int, private: bool) -> None:
        """Make pages private, or shared."""
        call = Conversion(offset, offset + count, private, self._holder.who)
        self._loop.run(conversions.convert(self._use(), call))

    def query_memory_attributes(self) -> list[MemoryAttributes]:
        """Ranges of pages, and whether they are private."""
        file = self._use()
        with self._loop.inside():
            return [
                MemoryAttributes(start, end - start, private)
                for start, end, private in file.attributes.since(0, file.count)
            ]

    def query_memory_attribute(self, offset: int) -> MemoryAttributes:
        """The range from page *offset* on that is of one kind."""
        file = self._use()
        with self._loop.inside():
            for start, end, private in file.attributes.since(offset, file.count):
                return MemoryAttributes(start, end - start, private)
        raise OSError(errno.EINVAL, f"page {offset} lies past the end")

    def populate(
        self,
        offset: int,
        count: int,
        source: AttributesOfFile | None = None,
        source_offset: int = 0,
    ) -> int:
        """Fill private pages from *source*."""
        origin = None if source is None else Source(source._use(), source_offset)
        end = offset + count
        who = self._holder.who
        populate = populating.populate(self._use(), offset, end, origin, who)
        return self._loop.run(populate)

    def freeze(self) -> None:
        """Freeze the file."""
        holder = self._holder
        self._loop.run(freezing.freeze(self._use(), holder, holder.who))

    def unfreeze(self) -> None:
        """Undo `freeze`."""
        file = self._use()
        with self._loop.inside():
            freezing.unfreeze(file, self._holder, self._holder.who)

    def migrate(self, offset: int, count: int) -> None:
        """Move pages to other frames."""
        end = offset + count
        who = self._holder.who
        self._loop.run(migration.migrate(self._use(), offset, end, who))

    def pin_pages(self, offset: int, count: int = 1) -> list[Extent]:
        """Pin shared pages."""
        file, end = self._use(), offset + count
        pinner = Pinner(self._holder)

        async def pin() -> list[Extent]:
            extents, moved = await hostaccess.pin(file, pinner, offset, end)
            await file.pages.moved.tell(moved)
            return extents

        return self._loop.run(pin())

    def unpin_pages(self, extents: Iterable[Run]) -> None:
        """Give back pins."""
        file = self._use()
        with self._loop.inside():
            for extent in extents:
                file.pages.put(Pinner(self._holder), extent.pfn, extent.count)

    def shared_window(self) -> SharedWindow:
        """Access to shared pages."""
        return SharedWindow(self._use, self._loop)


class SharedWindow(Sliced):
    """See `inaccfs.client.blockingpages.SharedWindow`. Offsets are bytes."""

    def __init__(
        self,
        use: Callable[[], InaccessibleFile],
        loop: BlockingLoop,
    ) -> None:
        """Use `AttributesOfFile.shared_window`."""
        self._use: Final = use
        self._loop: Final = loop

    def read(self, offset: int, count: int) -> bytes:
        """Read *count* bytes."""
        return self._loop.run(hostaccess.read_shared(self._use(), offset, count))

    def write(self, offset: int, data: bytes) -> None:
        """Write *data*."""
        self._loop.run(hostaccess.write_shared(self._use(), offset, data))
