"""Checks invariants, after a call and at the end of a schedule."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from inaccfs.explore.names import frame
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Sequence

    from inaccfs.explore.memory import Frames
    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.vm import ExploredVM
    from inaccfs.inprocess import Mount
    from inaccfs.kvm import MemoryFaultExit, Vcpu
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.memory import Memory


# A file may have grown, and a slot may reach past its end.
_ALL: Final = range(1 << 52)


class Judge:
    """Checks one execution. Numbers are pages. See `inaccfs.explore.schedule.KINDS`."""

    def __init__(
        self,
        schedule: Schedule,
        mount: Mount,
        frames: Frames,
        vms: Sequence[ExploredVM],
    ) -> None:
        self._schedule: Final = schedule
        self._mount: Final = mount
        self._frames: Final = frames
        self._vms: Final = vms
        # The frames that have failed; they are never used again.
        self.failed: Final[set[int]] = set()

    def failures(self, frames: Container[int], when: str) -> None:
        """Find VMs that map one of these *frames*, which have failed."""
        for vm in self._vms:
            if not vm.is_connected:
                continue
            for gfn in vm.places:
                spte = vm.spte(gfn)
                if spte is not None and spte.pfn in frames:
                    self._schedule.violate(
                        "stale-mapping",
                        f"{when}, and gfn {gfn} of {vm.name} is mapped to frame "
                        f"{frame(spte.pfn)}, which has failed",
                    )

    def exit(
        self, vcpu: Vcpu, exit_: MemoryFaultExit, always: Callable[[int], int]
    ) -> None:
        """Find an exit with EINVAL for a page that the file always had.

        *always* returns how many pages a file always had, by its number.
        """
        gfn = exit_.gpa // PAGE_SIZE
        for vm in self._vms:
            if vm._mmu is vcpu._mmu and (place := vm.places.get(gfn)) is not None:
                file, page = place
                if exit_.errno == errno.EINVAL and page < always(file):
                    self._schedule.violate(
                        "unexplained-exit",
                        f"{vm.name} is refused page {page} of a file that has it",
                    )

    def kinds(self, inodes: Sequence[InaccessibleFile], when: str) -> None:
        """Find VMs that map a shared page as private, or a private one as shared."""
        for vm in self._vms:
            mmu: Any = vm._mmu
            if not (mmu.in_place and vm.is_connected):
                continue
            for gfn, (file, page) in vm.places.items():
                private = inodes[file].attributes.is_private(page)
                spte = (mmu.shared_table if private else mmu.table).walk(gfn)
                if spte is None:
                    continue
                is_, as_ = ("private", "shared") if private else ("shared", "private")
                self._schedule.violate(
                    "wrong-kind",
                    f"{when}: page {page} is {is_}, and gfn {gfn} of {vm.name} is "
                    f"mapped as {as_}, to frame {frame(spte.pfn)}",
                )

    def mappings(self, fd: int, pages: Container[int], when: str) -> None:
        """Find VMs that map a frame that its page, one of *pages*, does not have."""
        memory = self._mount.inode(fd).pages.memory
        ino = os.fstat(fd).st_ino
        for vm in self._vms:
            if not vm.is_connected:
                continue
            for slot in vm.slots:
                if slot.backing is None or slot.backing.ino != ino:
                    continue
                for gfn in range(slot.base_gfn, slot.end_gfn):
                    _, page = vm.places.get(gfn) or (ino, slot.pgoff(gfn))
                    if page not in pages or (spte := vm.spte(gfn)) is None:
                        continue
                    known = memory and memory.frames.known(page, page + 1)
                    now = known[0].pfn if known else None
                    if now != spte.pfn:
                        has = "none" if now is None else frame(now)
                        self._schedule.violate(
                            "stale-mapping",
                            f"{when}, and gfn {gfn} of {vm.name} is mapped to frame "
                            f"{frame(spte.pfn)}; page {page} has {has}",
                        )

    def end(self, files: Iterable[int]) -> None:
        """Check the end of a schedule. *files* are fds."""
        schedule = self._schedule
        found = {violation.kind for violation in schedule.violations}
        alive = [vm for vm in self._vms if vm.is_connected]
        for vm in alive:
            if (left := vm.in_progress) and "unpaired" not in found:
                schedule.violate(
                    "unpaired",
                    f"{vm.name} counts {left} invalidations in progress of none",
                )
            vm.check_counts(schedule)
        if "stale-mapping" not in found:
            for fd in files:
                self.mappings(fd, _ALL, "all is over")
            self.failures(self.failed, "all is over")
        for _, file in self._mount.files():
            memory = file.pages.memory
            if memory is not None and memory.references_count:
                schedule.violate("leaked-reference", self._who_holds(memory))
        for vm in self._vms:
            with suppress(ConnectionError):
                vm.close()
        for _, file in self._mount.files():
            for notifier in file.notifiers:
                vm = self._vms[notifier.who - 1]
                schedule.violate(
                    "leaked-notifier", f"{vm.name} has been closed, and has a notifier"
                )
        leaks = "leaked-reference" in {each.kind for each in schedule.violations}
        lost = self._frames.used - self._fetched() - self.failed
        if lost and not leaks:
            names = ", ".join(map(frame, sorted(lost)))
            schedule.violate("leaked-frame", f"{names}: no page has it, and nobody")

    def _who_holds(self, memory: Memory) -> str:
        found = [
            f"{who} has not put frame {frame(pfn)}"
            for who, held in self._frames.held.items()
            for pfn, count in sorted(held.items())
            if count > 0
        ]
        return "all is over, and " + (
            ", ".join(found)
            or f"{memory.references_count} references are counted that nobody has"
        )

    def _fetched(self) -> set[int]:
        """The frames of all fetched pages."""
        return {
            extent.pfn + at
            for _, file in self._mount.files()
            if file.pages.memory is not None
            for extent in file.pages.memory.frames.extents()
            for at in range(extent.count)
        }
