"""x86/private_mem_conversions_test.c, torvalds/linux @5171573ce7cb, on real mounts.

The file is in tools/testing/selftests/kvm. Here the guest is a function, and its
hypercall a call of the VMM's. The sources of shared memory (its -s: THP, hugetlb,
shmem) have no meaning here, because any buffer is one.
"""

from __future__ import annotations

import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

import inaccfs
from inaccfs.kvm import VM
from tests.mount import support
from tests.mount.guests import add_slot, allocate, memfd, punch
from tests.mount.support import GIB, MIB, PAGE, PATIENCE, allocated

if TYPE_CHECKING:
    from inaccfs.kvm import Vcpu

pytestmark = pytest.mark.fuse

BASE: Final = 4 * GIB
# The size of a vCPU's memory, and the distance to the next vCPU's.
DATA: Final = 2 * MIB + PAGE
STRIDE: Final = 4 * MIB

# Offset and size, in bytes. The last one is not in the source, which leaves the odd
# pages of 2 MiB out because they take long.
RANGES: Final = [
    (0, PAGE),
    (0, 2 * MIB),
    (PAGE, PAGE),
    (PAGE, 2 * MIB),
    (2 * MIB, PAGE),
    (3 * PAGE, 5 * PAGE),
]

# The number of pages that are converted one by one.
FEW: Final = 8 * PAGE


class Workload:
    """The work of one vCPU; the guest's memory is shared until it converts it."""

    def __init__(self, vm: VM, fd: int, host: mmap.mmap, base: int) -> None:
        self._vm = vm
        self._vcpu: Vcpu = vm.create_vcpu()
        self._fd = fd
        self._host = host
        self._base = base

    def _memset(self, gpa: int, pattern: int, size: int, *, private: bool) -> None:
        self._vcpu.write(gpa, bytes([pattern]) * size, private=private)

    def _expect(self, gpa: int, pattern: int, size: int, *, private: bool) -> None:
        if size:
            found = self._vcpu.read(gpa, size, private=private)
            assert found == bytes([pattern]) * size, (hex(gpa), size, private)

    def _host_sees(self, gpa: int, pattern: int, size: int) -> None:
        at = gpa - BASE
        assert self._host[at : at + size] == bytes([pattern]) * size, hex(gpa)

    def _host_sets(self, gpa: int, pattern: int, size: int) -> None:
        at = gpa - BASE
        self._host[at : at + size] = bytes([pattern]) * size

    def _map_shared(self, gpa: int, size: int, *, fallocate: bool) -> None:
        if fallocate:
            self.punch(gpa, size)
        self._vm.set_memory_attributes(gpa, size, private=False)

    def _map_private(self, gpa: int, size: int, *, fallocate: bool) -> None:
        if fallocate:
            allocate(self._fd, (gpa - BASE) // PAGE, size // PAGE)
        self._vm.set_memory_attributes(gpa, size, private=True)

    def run(self) -> None:
        """guest_code."""
        for fallocate in (False, True):
            self.explicit_conversion(fallocate=fallocate)
        for precise in (False, True):
            self.punch_hole(precise=precise)

    def punch(self, gpa: int, size: int) -> None:
        """Free private memory, and keep the attributes."""
        punch(self._fd, (gpa - BASE) // PAGE, size // PAGE)

    def explicit_conversion(self, *, fallocate: bool) -> None:
        """guest_test_explicit_conversion."""
        base, init = self._base, 0xCC
        self._memset(base, 0xAA, DATA, private=False)
        self._host_sees(base, 0xAA, DATA)
        self._host_sets(base, init, DATA)
        self._expect(base, init, DATA, private=False)
        for offset, size in RANGES:
            gpa = base + offset
            self._memset(gpa, 0x11, size, private=False)
            self._map_private(gpa, size, fallocate=fallocate)
            if size > FEW:
                self._memset(gpa, 0x22, PAGE, private=True)
            else:
                self._memset(gpa, 0x22, size, private=True)
                self._host_sees(gpa, 0x11, size)
                self._expect(gpa, 0x22, size, private=True)
                self._expect(base, init, gpa - base, private=False)
                end = gpa + size
                self._expect(end, init, base + DATA - end, private=False)
                self._odd_pages(gpa, size, fallocate=fallocate)
            self._map_shared(gpa, size, fallocate=fallocate)
            self._memset(gpa, 0x33, size, private=False)
            self._host_sees(gpa, 0x33, size)
            self._host_sets(gpa, 0x44, size)
            self._expect(gpa, 0x44, size, private=False)
            self._memset(gpa, init, size, private=False)
            self._map_shared(base, DATA, fallocate=True)

    def _odd_pages(self, gpa: int, size: int, *, fallocate: bool) -> None:
        """Holes in a private range: every second page becomes shared."""
        for page in range(gpa, gpa + size, PAGE):
            self._host_sees(page, 0x11, PAGE)
            if (page - gpa) // PAGE & 1:
                self._map_shared(page, PAGE, fallocate=fallocate)
                self._host_sets(page, 0x33, PAGE)
                self._expect(page, 0x33, PAGE, private=False)
        for page in range(gpa, gpa + size, 2 * PAGE):
            self._expect(page, 0x22, PAGE, private=True)

    def punch_hole(self, *, precise: bool) -> None:
        """guest_test_punch_hole: zeros, with all of it faulted in or the range only."""
        self._map_private(self._base, DATA, fallocate=False)
        for offset, size in RANGES:
            gpa = self._base + offset
            self.punch(self._base, DATA)
            first, length = (gpa, size) if precise else (self._base, DATA)
            self._memset(first, 0xCC, length, private=True)
            self._expect(first, 0xCC, length, private=True)
            self.punch(gpa, size)
            self._expect(gpa, 0, size, private=True)


@pytest.mark.parametrize(
    ("vcpus", "slots", "huge"), [(1, 1, "never"), (2, 1, "always"), (2, 4, "always")]
)
def test_conversions(vcpus: int, slots: int, huge: str) -> None:
    """test_mem_conversions, with its -n and -m."""
    size = vcpus * STRIDE
    part = size // slots
    with ExitStack() as stack:
        mount = stack.enter_context(support.mounted(size="64m", huge=huge))
        shim = stack.enter_context(inaccfs.connect(mount.path))
        fd = memfd(shim, size)
        stack.callback(os.close, fd)
        host = stack.enter_context(mmap.mmap(-1, size))
        with VM(shim, default_private=False) as vm, memoryview(host) as view:
            for slot in range(slots):
                at = slot * part
                add_slot(
                    vm,
                    fd,
                    view[at : at + part],
                    slot=10 + slot,
                    guest_phys_addr=BASE + at,
                    memory_size=part,
                    private_offset=at,
                )
            loads = [
                Workload(vm, fd, host, BASE + number * STRIDE)
                for number in range(vcpus)
            ]
            with ThreadPoolExecutor(vcpus) as pool:
                for done in [pool.submit(load.run) for load in loads]:
                    done.result(PATIENCE)
            assert vm.stale_sptes() == []
        # The VM is closed, and the file lives on.
        punch(fd, 0, size // PAGE)
        assert allocated(fd) == 0
        allocate(fd, 0, size // PAGE)
        assert allocated(fd) == size
        assert shim.query_notifiers() == []
