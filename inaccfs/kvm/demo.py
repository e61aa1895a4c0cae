"""`inaccfs kvm demo`: a guest's memory is faulted in, converted and punched."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from inaccfs.kvm import pagemap_view
from inaccfs.kvm.uapi import (
    KVM_MEM_PRIVATE,
    PAGE_SHIFT,
    PAGE_SIZE,
    MemoryFaultExit,
)
from inaccfs.kvm.vm import VM
from inaccfs.kvm.vmm import Vmm
from inaccfs.syscalls import PUNCH, fallocate

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.client import Client
    from inaccfs.kvm.shim import ShimSemantics
    from inaccfs.kvm.stats import Stats

# One huge page, and a rest that is too small for another.
_PAGES: Final = 640
# Two, if a file consists of huge pages.
_HUGE_PAGES: Final = 1024
PAGES: Final = max(_PAGES, _HUGE_PAGES)
"""The most pages of 4 KiB that the demo needs."""

_SECRET: Final = b"a guest's secret"


class Demo:
    """A VM of 2.5 MiB, or of 4 MiB, whose memory is shown step by step."""

    def __init__(
        self, vm: VM, fd: int, show: Callable[[str], object], *, colour: bool
    ) -> None:
        """*show* is called with one or more lines at a time."""
        huge = _is_of_huge_pages(vm.rules)
        self._pages: Final = _HUGE_PAGES if huge else _PAGES
        # The punches of the host: first pages and numbers of pages.
        self._punched: Final = ((512, 512),) if huge else ((2, 4), (540, 10))
        self._vm: Final = vm
        self._fd: Final = fd
        self._vmm: Final = Vmm(vm)
        self._vcpu: Final = vm.create_vcpu()
        self._show: Final = show
        self._colour: Final = colour
        self._before: Stats = vm.stats

    def run(self) -> None:
        """Run all steps."""
        self._title(
            f"A slot: {self._pages} pages of guest memory, and nothing is there yet"
        )
        self._map()
        self._fault_in()
        self._convert()
        self._touch_again()
        self._lose()
        self._fault_in_again()

    # --- the story --------------------------------------------------------------------

    def _fault_in(self) -> None:
        self._title("The guest writes to pages 3, 520 and 530 to 559")
        for page in (3, 520, *range(530, 560)):
            self._vcpu.write(page << PAGE_SHIFT, _SECRET)
        self._counted()
        self._map()

    def _convert(self) -> None:
        self._title("The guest takes page 8 for shared, and writes to it")
        try:
            self._vcpu.write(8 << PAGE_SHIFT, b"for all to see", private=False)
        except MemoryFaultExit as exc:
            self._show(f"exit: {exc}")
            in_place = self._vm.shared_in_file
            half = ", in place" if in_place else ", punches its private half,"
            self._show(f"the VMM converts the page{half} and retries")
            self._vmm.handle(exc)
        self._vcpu.write(8 << PAGE_SHIFT, b"for all to see", private=False)
        self._counted()
        self._map()

    def _touch_again(self) -> None:
        self._title("The guest touches pages 0 to 63, but for the shared one")
        self._touch(0, 64)
        self._counted()
        self._map()

    def _lose(self) -> None:
        ranges = [f"{first} to {first + pages - 1}" for first, pages in self._punched]
        self._title(f"The host punches pages {' and '.join(ranges)}")
        for start, pages in self._punched:
            fallocate(self._fd, PUNCH, start << PAGE_SHIFT, pages << PAGE_SHIFT)
        self._show("fallocate(2) has returned: KVM got the event, and has zapped them")
        self._counted()
        self._map()

    def _fault_in_again(self) -> None:
        self._title("The guest reads what it had written")
        for page in (3, 520, 545, 555):
            found = self._vcpu.read(page << PAGE_SHIFT, len(_SECRET))
            text = repr(found) if any(found) else "zeros: the page is a new one"
            self._show(f"page {page:3}: {text}")
        self._counted()
        self._map()

    # --- parts ------------------------------------------------------------------------

    def _touch(self, start: int, end: int) -> None:
        for gfn in range(start, end):
            if self._vm.is_private(gfn):
                self._vcpu.read(gfn << PAGE_SHIFT, 1)

    def _title(self, text: str) -> None:
        self._show(f"\n\x1b[1m== {text}\x1b[0m" if self._colour else f"\n== {text}")

    def _counted(self) -> None:
        """Show KVM's counts since the last call."""
        before, now = self._before, self._vm.stats
        self._before = now
        counts = {
            "faults": now.faults - before.faults,
            "exits": now.exits - before.exits,
            "invalidations": now.invalidations - before.invalidations,
            "mapped by 4 KiB": now.installed.pages_4k - before.installed.pages_4k,
            "by 2 MiB": now.installed.pages_2m - before.installed.pages_2m,
            "zapped": sum(now.zapped) - sum(before.zapped),
        }
        self._show(
            ", ".join(f"{name} {count}" for name, count in counts.items() if count)
        )

    def _map(self) -> None:
        found = pagemap_view.states(self._vm, 0, self._pages)
        self._show(pagemap_view.render(found, colour=self._colour))
        self._show(pagemap_view.legend(found, colour=self._colour))


def _is_of_huge_pages(rules: ShimSemantics) -> bool:
    """Whether files have huge pages: then a punch has whole ones, too."""
    return rules.by_huge_page


def run(shim: Client, show: Callable[[str], object], *, colour: bool) -> None:
    """Run the demo on a new file of the mount of *shim*.

    Raises:
        OSError: ENOSPC where the mount has less than `PAGES`; EPERM where it refuses
            get-memory; `ControlError`.
    """
    with ExitStack() as stack:
        huge = _is_of_huge_pages(shim.query_semantics())
        size = (_HUGE_PAGES if huge else _PAGES) * PAGE_SIZE
        fd = shim.memfd_create("kvm-demo", size=size)
        stack.callback(os.close, fd)
        vm = stack.enter_context(VM(shim))
        vm.set_user_memory_region(
            0,
            0,
            size,
            private_fd=fd,
            shared=mmap.mmap(-1, size),
            flags=KVM_MEM_PRIVATE,
        )
        Vmm(vm).convert(0, size, private=True)
        Demo(vm, fd, show, colour=colour).run()
