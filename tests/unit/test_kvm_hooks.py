"""The hooks of an architecture: when KVM calls them, and what one that raises costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from inaccfs.kvm import KVM_MEM_PRIVATE, VM
from inaccfs.kvm.arch import Arch
from inaccfs.semantics import V8, V10, InPlaceNext, InPlaceV8
from inaccfs.syscalls import PUNCH
from tests.unit.kvm_in_place_guests import PAGE, PAGES, guest
from tests.unit.one_file import one_file

if TYPE_CHECKING:
    from inaccfs.semantics import Semantics


class Recorded(Arch):
    """Records the calls of hooks, with frames as page numbers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def make_private(self, gfn: int, pfn: int, pages: int) -> None:
        self.calls.append(("make_private", gfn, pages))

    def make_shared(self, pfn: int, pages: int) -> None:
        self.calls.append(("make_shared", pfn, pages))

    def reclaim(self, pfn: int, pages: int) -> None:
        self.calls.append(("reclaim", pfn, pages))

    def invalidate_range(self, start: int, end: int) -> None:
        self.calls.append(("invalidate_range", start, end))


class SaysFrames(InPlaceNext):
    tells_frames = True


def test_each_reason_has_its_hook() -> None:
    """In the tree after v8 a conversion keeps the content, and a free scrubs it."""
    arch = Recorded()
    with guest(SaysFrames(), arch=arch) as it:
        it.vcpu.write(0, b"secret")
        spte = it.vm.spte(0)
        assert spte is not None
        assert arch.calls == [("make_private", 0, 1)]
        it.convert(0, private=False)
        assert arch.calls[1:] == [
            ("invalidate_range", 0, 1),
            ("make_shared", spte.pfn, 1),
        ]
        arch.calls.clear()
        it.vcpu.read(0, 1)
        it.mount.fallocate(it.fd, PUNCH, 0, PAGE)
        assert arch.calls == [("invalidate_range", 0, 1), ("reclaim", spte.pfn, 1)]
        arch.calls.clear()
        it.vm.set_user_memory_region(0, 0, 0)
        assert arch.calls[0] == ("invalidate_range", 0, PAGES)


def test_a_conversion_to_private_makes_nothing_shared() -> None:
    arch = Recorded()
    with guest(SaysFrames(), arch=arch) as it:
        it.convert(0, private=False)
        it.vcpu.write(0, b"public")
        it.convert(0, private=True)
        assert {name for name, *_ in arch.calls} == {"invalidate_range"}


def test_get_pfn_of_a_private_page_repeats_its_hook() -> None:
    """The hook has to be idempotent."""
    arch = Recorded()
    with guest(InPlaceV8(), arch=arch) as it:
        for _ in range(2):
            it.vcpu.read(0, 1)
            it.vm.set_user_memory_region(0, 0, 0)
            it.vm.set_user_memory_region(
                0, 0, PAGE, private_fd=it.fd, flags=KVM_MEM_PRIVATE
            )
        assert arch.calls.count(("make_private", 0, 1)) == 2


class Raises(Arch):
    """A hook with a bug that shows once."""

    def __init__(self) -> None:
        self.raised = False

    def invalidate_range(self, start: int, end: int) -> None:
        if not self.raised:
            self.raised = True
            raise RuntimeError("a bug in a hook")


@pytest.mark.parametrize("semantics", [V8(), V10(), InPlaceV8()])
def test_a_hook_that_raises_in_an_event_leaves_no_invalidation(
    semantics: Semantics,
) -> None:
    with guest(semantics, arch=Raises()) as it:
        it.vcpu.write(0, b"secret")
        it.mount.fallocate(it.fd, PUNCH, 0, PAGE)
        assert it.vm.spte(0) is None
        assert it.vm.stats.in_progress == 0
        assert it.vcpu.read(0, 6) == bytes(6)
        with pytest.raises(RuntimeError, match="a bug in a hook"):
            it.vm.set_user_memory_region(0, 0, 0)


def test_a_hook_that_raises_in_a_conversion_leaves_no_invalidation() -> None:
    with one_file(V10()) as it, VM(it.client, arch=Raises()) as vm:
        shared = bytearray(PAGE)
        vm.set_user_memory_region(
            0, 0, PAGE, private_fd=it.fd, shared=shared, flags=KVM_MEM_PRIVATE
        )
        vcpu = vm.create_vcpu()
        vcpu.write(0, b"secret")
        with pytest.raises(RuntimeError, match="a bug in a hook"):
            vm.set_memory_attributes(0, PAGE, private=False)
        assert vm.stats.in_progress == 0
        assert vm.spte(0) is None
        assert vcpu.read(0, 6, private=False) == bytes(6)
        vm.set_memory_attributes(0, PAGE, private=True)
        assert vcpu.read(0, 6) == b"secret"
        vm.close()
