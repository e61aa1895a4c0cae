"""Private and shared pages of a file: tracks steps, and checks mappings of VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inaccfs.explore import seen
from inaccfs.explore.names import frame
from inaccfs.kvm.pagetable import PageTable
from inaccfs.shim.attributes import Attributes

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.vm import ExploredVM
    from inaccfs.shim.file import InaccessibleFile


class Kinds(Attributes):
    """The attributes of a file, tracked page by page."""

    _sight: seen.Sight
    _pages: int

    def _touch(self, start: int, end: int, write: bool) -> None:
        sight = self._sight
        if sight.schedule.runs:
            for page in range(start, min(end, self._pages)):
                sight.schedule.touch(seen.kind_key(sight.number, page), write)

    def is_private(self, page: int) -> bool:
        """See `Attributes.is_private`."""
        self._touch(page, page + 1, False)
        return super().is_private(page)

    def since(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """See `Attributes.since`."""
        self._touch(start, end, False)
        return super().since(start, end)

    def set(self, start: int, end: int, *, private: bool) -> None:
        """See `Attributes.set`."""
        self._touch(start, end, True)
        word = "private" if private else "shared"
        self._sight.schedule.note(f"pages [{start}, {end}) are {word} now")
        super().set(start, end, private=private)


def watch_kinds(file: InaccessibleFile, sight: seen.Sight, pages: int) -> None:
    """Track the attributes of a file's pages."""
    attributes: Any = file.attributes
    attributes._sight, attributes._pages = sight, pages
    attributes.__class__ = Kinds

    def value(page: int) -> Hashable:
        return Attributes.is_private(attributes, page)

    for page in range(pages):
        key = seen.kind_key(sight.number, page)
        sight.schedule.state.of_key[key] = lambda page=page: value(page)  # type: ignore[misc]


def check_kinds(
    schedule: Schedule,
    vms: Iterable[ExploredVM],
    inodes: Sequence[InaccessibleFile],
    when: str,
) -> None:
    """Find VMs that map a shared page as private, or a private one as shared."""
    for vm in vms:
        mmu: Any = vm._mmu
        if not (mmu.in_place and vm.is_connected):
            continue
        for gfn, (file, page) in vm.places.items():
            private = Attributes.is_private(inodes[file].attributes, page)
            wrong = mmu.shared_table if private else mmu.table
            spte = PageTable.walk(wrong, gfn)
            if spte is not None:
                is_, as_ = ("private", "shared") if private else ("shared", "private")
                schedule.violate(
                    "wrong-kind",
                    f"{when}: page {page} is {is_}, and gfn {gfn} of {vm.name} is "
                    f"mapped as {as_}, to frame {frame(spte.pfn)}",
                )
