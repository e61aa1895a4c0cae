"""The memory that unicorn reads and writes, for the length of one instruction.

unicorn calls a hook at each access, and then accesses its own memory. So the hook for a
read copies the guest's memory there first, and the hook for a write copies what is
written to the guest. The hook for the first access to a page may refuse it; then
nothing has happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable


class Scratch:
    """The pages that unicorn has mapped during one instruction."""

    def __init__(
        self,
        uc: Any,  # noqa: ANN401 - of a package without types
        read: Callable[[int, int], bytes],
        write: Callable[[int, bytes], None],
    ) -> None:
        self._uc: Final = uc
        self._read_guest: Final = read
        self._write_guest: Final = write
        self._pages: Final[set[int]] = set()
        # The pc of the last instruction, whose page stays mapped, and the code there.
        self._code: tuple[int, bytes] | None = None
        # The address and the size of the data that the next access will find.
        self._supplied: tuple[int, int] | None = None
        # Writes that unicorn has made only in its own memory so far.
        self._pending: Final[list[tuple[int, bytes]]] = []

    def reset(self) -> None:
        """Unmap all pages, also those that an interrupted instruction has left."""
        for first, last, _ in self._uc.mem_regions():
            self._uc.mem_unmap(first, last + 1 - first)
        self._pages.clear()
        self._code = None

    def begin(self, pc: int, code: bytes) -> None:
        """Begin an instruction."""
        page = pc & -PAGE_SIZE
        for each in self._pages - {page}:
            self._uc.mem_unmap(each, PAGE_SIZE)
        self._pages.intersection_update({page})
        self._supplied = None
        self._pending.clear()
        if self._code != (pc, code) or page not in self._pages:
            self.put(pc, code)
            self._uc.ctl_remove_cache(pc, pc + len(code))
            self._code = pc, code

    def put(self, address: int, data: bytes) -> None:
        """Have unicorn find *data* at *address*."""
        for page in {address & -PAGE_SIZE, address + len(data) - 1 & -PAGE_SIZE}:
            if page not in self._pages:
                self._uc.mem_map(page, PAGE_SIZE)
                self._pages.add(page)
        self._uc.mem_write(address, data)

    def read_unmapped(self, address: int, size: int, value: int) -> None:
        """Hook: the first read of a page."""
        self.put(address, self._read_guest(address, size))
        self._supplied = address, size

    def read_mapped(self, address: int, size: int, value: int) -> None:
        """Hook: any read. It follows `read_unmapped` for the same read."""
        if self._supplied != (address, size):
            self.put(address, self._read_guest(address, size))
            self._code = None
        self._supplied = None

    def write_mapped(self, address: int, size: int, value: int) -> None:
        """Hook: any write. It precedes `write_unmapped` for the same write."""
        data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        self._pending.append((address, data))
        self._code = None

    def write_unmapped(self, address: int, size: int, value: int) -> None:
        """Hook: the first write to a page. It may exit: nothing has happened yet."""
        self._write_guest(*self._pending.pop())
        # unicorn writes the data to this page, too, which is dropped afterwards.
        self.put(address, bytes(size))

    def writes_code(self, pc: int) -> bool:
        """Whether the instruction at *pc* writes to the page that it is in."""
        page = pc & -PAGE_SIZE
        return any(
            address < page + PAGE_SIZE and page < address + len(data)
            for address, data in self._pending
        )

    def finish(self) -> None:
        """End an instruction: copy what it wrote to mapped pages to the guest."""
        for address, data in self._pending:
            self._write_guest(address, data)
