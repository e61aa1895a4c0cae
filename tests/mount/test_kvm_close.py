"""What the last close of a file does to its slots, under each rule."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, MemoryFaultExit, Vmm
from tests.mount.support import PATIENCE, ask_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse

PAGE = 4096
SIZE = 16 * PAGE


class World:
    """A mount, a VM with one private slot, and the fd of its file."""

    def __init__(self, stack: ExitStack, semantics: str) -> None:
        self.mount = stack.enter_context(
            inaccfs.mounted(size="16m", semantics=semantics)
        )
        self.shim = stack.enter_context(inaccfs.connect(self.mount.path))
        self.vm = stack.enter_context(VM(self.shim))
        self.fd = self.shim.memfd_create("guest", size=SIZE)
        self.add_slot(0)
        self.vcpu = self.vm.create_vcpu()
        self.vcpu.write(0x3000, b"secret")

    def add_slot(self, slot: int, page: int = 0, pages: int = 8) -> None:
        gpa = slot << 30
        self.vm.set_user_memory_region(
            slot,
            gpa,
            pages * PAGE,
            private_fd=self.fd,
            private_offset=page * PAGE,
            shared=mmap.mmap(-1, pages * PAGE),
            flags=KVM_MEM_PRIVATE,
        )
        if not self.vm.in_place:
            self.vm.set_memory_attributes(gpa, pages * PAGE, private=True)

    def settle(self) -> None:
        """Wait until the daemon, and then the VM, have noticed each close."""
        os.statvfs(self.mount.path)
        self.vm.notice_closed_files()

    def reads(self) -> bytes:
        return self.vcpu.read(0x3000, 6)


@pytest.fixture
def mainline() -> Iterator[World]:
    with ExitStack() as stack:
        yield World(stack, "guest_memfd-6.12")


def test_the_last_close_takes_a_slots_memory(mainline: World) -> None:
    """kvm_gmem_release(): zapped, and each private access exits with EFAULT."""
    other = os.dup(mainline.fd)
    os.close(mainline.fd)
    mainline.settle()
    assert mainline.reads() == b"secret"
    os.close(other)
    mainline.settle()
    assert mainline.vm.spte(3) is None
    for _ in range(2):
        with pytest.raises(MemoryFaultExit) as caught:
            mainline.reads()
        assert (caught.value.flags, caught.value.errno) == (8, errno.EFAULT)
        # A conversion does not help.
        with pytest.raises(MemoryFaultExit):
            Vmm(mainline.vm).handle(caught.value)
    mainline.vm.set_memory_attributes(0x3000, PAGE, private=False)
    assert mainline.reads() == bytes(6)
    assert "Traceback" not in mainline.mount.log.read_text()


def test_a_file_that_has_gone_is_shared(tmp_path: Path) -> None:
    """kvm_gmem_is_private(): where shared pages are the VMM's, these stay."""
    own = tmp_path / "own.py"
    own.write_text(
        "from inaccfs.semantics import InPlaceV8\n\n\n"
        'class NoMmap(InPlaceV8):\n    mmap = "refused"\n'
    )
    with ExitStack() as stack:
        world = World(stack, f"{own}:NoMmap")
        Vmm(world.vm).convert(0, PAGE, private=False)
        world.vcpu.write(0, b"shared")
        os.close(world.fd)
        world.settle()
        for private in (None, False):
            assert world.vcpu.read(0, 6, private=private) == b"shared"
            assert world.vcpu.read(0x3000, 6, private=private) == bytes(6)
        assert world.vm.pre_fault_memory(0, 8 * PAGE) == (8 * PAGE, 0)
        with pytest.raises(MemoryFaultExit) as caught:
            world.vcpu.read(0x3000, 6, private=True)
        assert (caught.value.flags, caught.value.errno) == (8, errno.EFAULT)


def test_an_invalidation_comes_by_itself(mainline: World) -> None:
    """It also reaches a vCPU that runs; here the test polls for it."""
    os.close(mainline.fd)
    found = None
    while found is None:
        try:
            assert mainline.reads() == b"secret"
        except MemoryFaultExit as exc:
            found = exc
    assert found.flags == 8


def test_a_process_that_has_inherited_the_file_keeps_it(mainline: World) -> None:
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    os.close(mainline.fd)
    mainline.settle()
    assert mainline.reads() == b"secret"
    os.close(theirs)
    os.waitpid(child, 0)
    os.close(ours)
    mainline.settle()
    with pytest.raises(MemoryFaultExit):
        mainline.reads()


def test_each_slot_has_the_fd_that_it_was_given(mainline: World) -> None:
    """The first slot's fd is closed, and its number belongs to another file."""
    again = os.dup(mainline.fd)
    os.close(mainline.fd)
    assert os.open("/dev/null", os.O_RDWR) == mainline.fd
    plain, mainline.fd = mainline.fd, again
    mainline.add_slot(1, page=8)
    assert mainline.vcpu.read(1 << 30, 1) == b"\0"
    Vmm(mainline.vm).convert(0x3000, PAGE, private=False)
    mainline.vm.set_memory_attributes(0x3000, PAGE, private=True)
    assert mainline.reads() == bytes(6)
    os.close(plain)
    os.close(again)


def test_what_a_named_file_is_closed_by_is_nothing(mainline: World) -> None:
    """A name keeps a file; a guest_memfd has no name."""
    path = mainline.mount.path / "guest"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, SIZE)
    os.close(mainline.fd)
    mainline.fd = fd
    mainline.add_slot(1)
    mainline.vcpu.write(1 << 30, b"kept")
    os.close(fd)
    os.statvfs(mainline.mount.path)
    assert mainline.vcpu.read((1 << 30) + PAGE, 1) == b"\0"


@pytest.mark.parametrize("semantics", ["in-place-v8", "in-place-next"])
def test_pages_of_a_file_that_has_gone_are_shared(semantics: str) -> None:
    """kvm_gmem_is_private() of the in-place series: false without a file."""
    size = 2 << 20
    with (
        inaccfs.mounted(size="16m", semantics=semantics) as mount,
        inaccfs.connect(mount.path) as shim,
        VM(shim) as vm,
    ):
        fd = shim.memfd_create("guest", size=size)
        vm.set_user_memory_region(0, 0, size, private_fd=fd, flags=KVM_MEM_PRIVATE)
        vcpu = vm.create_vcpu()
        vcpu.write(0x3000, b"secret")
        assert vm.is_private(3)
        os.close(fd)
        os.statvfs(mount.path)
        vm.notice_closed_files()
        assert not vm.is_private(3)
        for private, flags in ((None, 0), (True, 8), (False, 0)):
            with pytest.raises(MemoryFaultExit) as caught:
                vcpu.read(0x3000, 6, private=private)
            assert (caught.value.flags, caught.value.errno) == (flags, errno.EFAULT)
            # No conversion helps.
            with pytest.raises(MemoryFaultExit):
                Vmm(vm).handle(caught.value)
        # kvm_gmem_populate(): there is no file to get.
        with pytest.raises(OSError, match="closed by all") as refused:
            vm.populate(0, PAGE)
        assert refused.value.errno == errno.EFAULT


def test_attributes_of_a_file_that_has_gone_cannot_be_asked_or_set() -> None:
    """They vanish with the file, as get-pfn says; only its memory is still there."""
    with (
        inaccfs.mounted(size="16m", semantics="in-place-v8") as mount,
        inaccfs.connect(mount.path) as shim,
    ):
        fd = shim.memfd_create("guest", size=SIZE)
        with shim.weak_file(fd) as weak:
            weak.set_memory_attributes(0, 1, False)
            assert [one.private for one in weak.query_memory_attributes()] == [
                *(False, True)
            ]
            os.close(fd)
            ask_until(lambda: weak.query().opens == 0)
            for ask in (
                lambda: weak.get_pfn(3),
                weak.query_memory_attributes,
                lambda: weak.query_memory_attribute(3),
                lambda: weak.set_memory_attributes(0, 1, True),
            ):
                with pytest.raises(OSError, match="closed by all") as refused:
                    ask()
                assert refused.value.errno == errno.EFAULT


def test_v8_holds_the_file() -> None:
    with ExitStack() as stack:
        world = World(stack, "v8")
        os.close(world.fd)
        world.settle()
        assert world.reads() == b"secret"


@pytest.mark.parametrize("semantics", ["v8", "v9", "guest_memfd-6.8"])
def test_a_weak_name_does_not_keep_a_file(semantics: str) -> None:
    """getfd with weak: a notifier gets an event for the last close; get-pfn fails."""
    heard: list[tuple[int, int]] = []
    done = threading.Event()

    def hear(start: int, end: int) -> None:
        heard.append((start, end))
        done.set()

    with (
        inaccfs.mounted(size="16m", semantics=semantics) as mount,
        inaccfs.connect(mount.path) as shim,
        inaccfs.connect(mount.path) as other,
    ):
        fd = shim.memfd_create("guest", size=SIZE)
        by_range = shim.query_semantics().scope == "range"
        with shim.weak_file(fd) as weak, other.file(fd) as strong:
            notifier = (
                weak.bind(0, 16, hear) if by_range else weak.register_notifier(hear)
            )
            with notifier:
                weak.put_pfn(weak.get_pfn(3).pfn)
                os.close(fd)
                os.statvfs(mount.path)
                # The other client keeps the file, by an fdname and by an fd.
                assert weak.query().opens == 2
                weak.put_pfn(weak.get_pfn(3).pfn)
                assert not heard
                strong.close()
                assert done.wait(PATIENCE)
                with pytest.raises(OSError, match=r"closed by all") as caught:
                    weak.get_pfn(3)
                assert caught.value.errno == errno.EFAULT
                assert weak.query().opens == 0
            unit = PAGE if semantics == "v9" else 1
            assert heard == [(0, 16 * unit)]
        assert shim.query_files() == []
        assert "Traceback" not in mount.log.read_text()
