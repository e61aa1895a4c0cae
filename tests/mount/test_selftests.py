"""The assertions of the kernel's selftests about the file itself, on a mount under v8.

test_kvm_selftests.py has their assertions about KVM. The sources, below
tools/testing/selftests:

- M: vm/memfd_restricted.c, googleprodkernel/linux-cc @24dd1257d5c9
- G: kvm/guest_memfd_test.c, torvalds/linux @01f492e1817e
- S: mm/memfd_secret.c, torvalds/linux @06d074298583
- K: additions to the KVM selftests for memfd_restricted, linux-api archive @0a9b7c676,
  @caae2f5f7, @8e674e64e

The following have no meaning for v8, or another meaning:

=  ======================================  =============================================
G  fallocate at and past the size fails    v8 passes plain allocations to shmem, which
                                           takes them; here that they are taken
G  flags of KVM_CAP_GUEST_MEMFD_FLAGS      memfd_create(2) has its own; here those
G  mmap, fault_overflow, fault_private,    nothing can be mapped, so there is no address
   mmap_cow with GUEST_MEMFD_FLAG_MMAP     to fault at; what they assert of data and
                                           sizes is asserted of a guest's accesses
G  mbind, numa_allocation                  a policy is set for addresses: as above
G  collapse: MADV_COLLAPSE is EINVAL       as above
S  mlock_limit                             nothing is mapped, nothing locked by a user
S  process_vm_readv, ptrace PEEKDATA       they look for the page in a process that has
                                           it mapped, and none has
=  ======================================  =============================================
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.kvm import VM, MemoryFaultExit
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH, fallocate
from tests.mount.guests import add_slot, memfd, punch
from tests.mount.support import PAGE, allocated, ask_until, outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.client import Client

pytestmark = pytest.mark.fuse

TOTAL = 4 * PAGE


@pytest.fixture
def new(shim: Client) -> Iterator[int]:
    """A file whose size has not been set."""
    fd = shim.memfd_create("new")
    yield fd
    os.close(fd)


@pytest.fixture
def fd(shim: Client) -> Iterator[int]:
    made = memfd(shim, TOTAL)
    yield made
    os.close(made)


# --- the size -------------------------------------------------------------------------


def test_the_size_is_set_once(new: int) -> None:
    """M test_file_size."""
    os.ftruncate(new, PAGE)
    assert os.fstat(new).st_size == PAGE
    assert outcome(os.ftruncate, new, 2 * PAGE) == "EPERM"
    assert os.fstat(new).st_size == PAGE


def test_no_size_within_the_first_page_is_taken(new: int) -> None:
    """G test_create_guest_memfd_invalid_sizes; K: the first ftruncate is unaligned."""
    found = {outcome(os.ftruncate, new, size) for size in range(1, PAGE)}
    assert found == {"EINVAL"}
    os.ftruncate(new, PAGE)


def test_a_new_file_has_no_such_size_either(shim: Client) -> None:
    """G test_create_guest_memfd_invalid_sizes: where creation takes the size."""
    for size in (1, PAGE - 1, PAGE + 1):
        assert outcome(shim.memfd_create, "odd", size=size) == "EINVAL"
    # The kernel sends RELEASE for the last close some time later.
    ask_until(lambda: shim.query_files() == [])


def test_two_files_are_two(shim: Client, fd: int) -> None:
    """G test_create_guest_memfd_multiple."""
    first = os.fstat(fd)
    assert first.st_size == TOTAL
    other = memfd(shim, 2 * TOTAL)
    assert os.fstat(other).st_size == 2 * TOTAL
    assert os.fstat(fd).st_size == TOTAL
    assert os.fstat(fd).st_ino == first.st_ino != os.fstat(other).st_ino
    os.close(other)


def test_fstat_returns_size_and_page_size(fd: int) -> None:
    """G test_file_size."""
    found = os.fstat(fd)
    assert (found.st_size, found.st_blksize) == (TOTAL, PAGE)


def test_only_flags_that_are_known_are_taken(shim: Client) -> None:
    """G test_guest_memfd_flags."""
    found = {"ok": 0, "EINVAL": 0}
    for flag in (1 << bit for bit in range(32)):
        found[outcome(lambda flag=flag: os.close(shim.memfd_create("f", flag)))] |= flag
    known = inaccfs.MFD_CLOEXEC | inaccfs.MFD_INACCESSIBLE
    assert found == {"ok": known, "EINVAL": known ^ (1 << 32) - 1}


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    "access",
    [
        pytest.param(lambda fd: os.read(fd, 64), id="read"),
        pytest.param(lambda fd: os.write(fd, bytes(64)), id="write"),
        pytest.param(lambda fd: os.pread(fd, 64, 0), id="pread"),
        pytest.param(lambda fd: os.pwrite(fd, bytes(64), 0), id="pwrite"),
    ],
)
def test_file_io_is_blocked(fd: int, access: Callable[[int], object]) -> None:
    """M and G test_file_read_write, S test_file_apis."""
    assert outcome(access, fd) in ("EINVAL", "ESPIPE")
    assert allocated(fd) == 0
    os.posix_fallocate(fd, 0, TOTAL)
    assert outcome(access, fd) in ("EINVAL", "ESPIPE")


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_mmap_is_blocked(mount: inaccfs.Mount, fd: int, flags: int) -> None:
    """M test_mmap, G test_mmap_not_supported and test_mmap_cow."""
    if flags == mmap.MAP_PRIVATE and not mount.status().sealed:
        pytest.skip("this kernel makes private mappings of any file of a FUSE")
    for size in (PAGE, TOTAL):
        assert outcome(mmap.mmap, fd, size, flags) == "ENODEV"


# --- fallocate ------------------------------------------------------------------------


def test_fallocate_and_punch(new: int) -> None:
    """M test_fallocate."""
    fallocate(new, 0, 0, TOTAL)
    assert outcome(fallocate, new, PUNCH, PAGE - 1, PAGE) == "EINVAL"
    assert outcome(fallocate, new, PUNCH, PAGE, PAGE - 1) == "EINVAL"
    assert allocated(new) == TOTAL
    fallocate(new, PUNCH, PAGE, PAGE)
    assert allocated(new) == TOTAL - PAGE


def test_fallocate_within_and_past_the_size(fd: int) -> None:
    """G test_fallocate; v8 allocates past the size, where guest_memfd refuses."""
    fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, TOTAL)
    for offset in (TOTAL, TOTAL + PAGE):
        fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, PAGE)
        assert allocated(fd) == TOTAL + PAGE
        fallocate(fd, PUNCH, offset, PAGE)
    assert (os.fstat(fd).st_size, allocated(fd)) == (TOTAL, TOTAL)
    fallocate(fd, PUNCH, PAGE, PAGE)
    assert allocated(fd) == TOTAL - PAGE
    fallocate(fd, FALLOC_FL_KEEP_SIZE, PAGE, PAGE)
    assert allocated(fd) == TOTAL


def test_a_punch_is_of_whole_pages(fd: int) -> None:
    """G test_invalid_punch_hole."""
    os.posix_fallocate(fd, 0, TOTAL)
    for offset, length in (
        *((0, 1), (0, PAGE - 1), (0, PAGE + 1)),
        *((1, 1), (1, PAGE - 1), (1, PAGE), (1, PAGE + 1)),
        *((PAGE, 1), (PAGE, PAGE - 1), (PAGE, PAGE + 1)),
    ):
        found = outcome(fallocate, fd, PUNCH, offset, length)
        assert (offset, length, found) == (offset, length, "EINVAL")
    assert allocated(fd) == TOTAL


# --- the memory, by a guest -----------------------------------------------------------


def test_a_punched_page_is_zero_and_can_be_filled_again(shim: Client, fd: int) -> None:
    """G test_mmap_supported."""
    with VM(shim) as vm:
        add_slot(vm, fd, memory_size=TOTAL)
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"\xaa" * TOTAL)
        punch(fd, 0)
        assert vcpu.read(0, PAGE) == bytes(PAGE)
        assert vcpu.read(PAGE, TOTAL - PAGE) == b"\xaa" * (TOTAL - PAGE)
        vcpu.write(0, b"\xaa" * PAGE)
        assert vcpu.read(0, TOTAL) == b"\xaa" * TOTAL


def test_pages_past_the_size_cannot_be_reached(shim: Client, fd: int) -> None:
    """G test_fault_overflow: SIGBUS there; here an exit with the errno of get-pfn."""
    with VM(shim) as vm:
        add_slot(vm, fd, memory_size=4 * TOTAL)
        vcpu = vm.create_vcpu()
        with pytest.raises(MemoryFaultExit) as caught:
            vcpu.write(0, b"\xaa" * 4 * TOTAL)
        assert (caught.value.gpa, caught.value.errno) == (TOTAL, errno.EINVAL)
        assert vcpu.read(0, TOTAL) == b"\xaa" * TOTAL
    assert allocated(fd) == TOTAL


def test_private_memory_cannot_be_reached_as_shared(shim: Client, fd: int) -> None:
    """G test_fault_private: SIGBUS there; here the exit that asks for a conversion."""
    with VM(shim) as vm:
        add_slot(vm, fd, memory_size=TOTAL)
        vcpu = vm.create_vcpu()
        for gpa in range(0, TOTAL, PAGE):
            with pytest.raises(MemoryFaultExit) as caught:
                vcpu.write(gpa, b"x", private=False)
            assert (caught.value.gpa, caught.value.flags) == (gpa, 0)
    assert allocated(fd) == 0


def test_a_guest_reads_what_the_host_wrote_and_writes_back(
    shim: Client, fd: int
) -> None:
    """G test_guest_memfd_guest; get-memory is what the host has instead of mmap(2)."""
    with VM(shim) as vm, shim.file(fd) as file:
        add_slot(vm, fd, memory_size=TOTAL, guest_phys_addr=1 << 32)
        memory = file.get_memory()
        os.pwrite(memory, b"\xaa" * PAGE, 0)
        vcpu = vm.create_vcpu()
        assert vcpu.read(1 << 32, PAGE) == b"\xaa" * PAGE
        vcpu.write(1 << 32, b"\xff" * PAGE)
        assert os.pread(memory, PAGE, 0) == b"\xff" * PAGE
        os.close(memory)
