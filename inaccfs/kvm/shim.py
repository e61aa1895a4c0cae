"""Protocols: the part of a client of the shim that the simulated KVM uses.

`inaccfs.client.Client` implements all of it. Offsets and counts are pages of the file's
page size; a pfn is the number of a frame of 4 KiB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias, TypedDict, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Unpack

    # Takes the first page, the page after the last, and what `ShimCallbacks` adds.
    Callback: TypeAlias = Callable[..., object]


class ShimFrame(Protocol):
    """The frame of a page."""

    @property
    def pfn(self) -> int: ...
    @property
    def order(self) -> int: ...


class ShimGot(ShimFrame, Protocol):
    """The frame of a page, as get-pfn returns it."""

    @property
    def private(self) -> object:
        """Whether the page is private; None if attributes are not kept in the file."""


class ShimAttributes(Protocol):
    """Pages of a file that are all private, or all shared."""

    @property
    def offset(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def private(self) -> bool: ...


class ShimExtent(ShimFrame, Protocol):
    """Pages in contiguous frames, of folios of one order."""

    @property
    def offset(self) -> int: ...
    @property
    def count(self) -> int: ...


class ShimGotExtent(ShimExtent, ShimGot, Protocol):
    """Pages as get-pfn returns them: all private or all shared, if the file says so."""


class ShimPin(ShimExtent, Protocol):
    """Pages of the file *ino* that were fetched, and not punched since."""

    @property
    def ino(self) -> int: ...


class ShimPins(Protocol):
    @property
    def extents(self) -> Sequence[ShimPin]: ...


class ShimSemantics(Protocol):
    """The rules that matter to a user of the shim."""

    @property
    def events(self) -> Sequence[str]: ...
    @property
    def unit(self) -> str: ...
    @property
    def by_range(self) -> bool: ...
    @property
    def keeps_references(self) -> bool: ...
    @property
    def order(self) -> str: ...
    @property
    def in_place(self) -> bool: ...
    @property
    def by_huge_page(self) -> bool: ...
    @property
    def kinds(self) -> str: ...
    @property
    def conversion_kinds(self) -> str: ...
    @property
    def tells_frames(self) -> bool: ...
    @property
    def mappable(self) -> bool: ...

    # The rules of KVM itself; see inaccfs/semantics/kvm.py.
    @property
    def kvm_default_attribute(self) -> str: ...
    @property
    def kvm_attribute_read(self) -> str: ...
    @property
    def kvm_shared_source(self) -> str: ...
    @property
    def kvm_access(self) -> str: ...
    @property
    def kvm_mismatch(self) -> str: ...
    @property
    def kvm_no_slot(self) -> str: ...
    @property
    def kvm_keeps_mmio(self) -> bool: ...
    @property
    def kvm_huge(self) -> bool: ...
    @property
    def kvm_exit_flag(self) -> str: ...
    @property
    def kvm_exit_returns(self) -> str: ...
    @property
    def kvm_slot_holds_file(self) -> bool: ...
    @property
    def kvm_file_of_one_vm(self) -> bool: ...
    @property
    def kvm_bad_fd(self) -> str: ...
    @property
    def kvm_ignores_unused(self) -> bool: ...
    @property
    def kvm_default_vm(self) -> str: ...
    @property
    def kvm_pre_fault(self) -> str: ...
    @property
    def kvm_pre_fault_partial(self) -> bool: ...
    @property
    def kvm_pre_fault_error(self) -> str: ...


class ShimFileInfo(Protocol):
    @property
    def ino(self) -> int: ...
    @property
    def page_size(self) -> int: ...


class ShimNotifier(Protocol):
    @property
    def registered(self) -> bool:
        """False after `unregister`, and when the daemon has disconnected it."""

    def unregister(self) -> None: ...


class ShimCallbacks(TypedDict, total=False):
    """The callbacks of a KVM besides the one for INVALIDATE."""

    invalidate_start: Callback | None
    invalidate_end: Callback | None
    error: Callback | None
    with_frames: bool
    with_kinds: bool
    with_zaps: bool


class ShimRun(Protocol):
    """Frames that follow each other."""

    @property
    def pfn(self) -> int: ...
    @property
    def count(self) -> int: ...


class ShimFile(Protocol):
    """A file of the mount."""

    def get_pfn(self, offset: int) -> ShimGot: ...
    def get_pfns(self, offset: int, count: int) -> Sequence[ShimGotExtent]: ...
    def put_pfn(self, pfn: int, count: int = 1, *, wait: bool = True) -> None: ...
    def put_pfns(self, extents: Sequence[ShimRun], *, wait: bool = True) -> None: ...
    def get_memory(self) -> int: ...
    def set_memory_attributes(self, offset: int, count: int, private: bool) -> None: ...

    # The source is a file of the same client.
    @property
    def populate(self) -> Callable[..., int]: ...
    def pin_pages(self, offset: int, count: int = 1) -> Sequence[ShimExtent]: ...
    def unpin_pages(self, extents: Sequence[ShimRun]) -> None: ...
    def query_memory_attribute(self, offset: int) -> ShimAttributes: ...
    def query(self) -> ShimFileInfo: ...
    def close(self) -> None: ...
    def register_notifier(
        self, invalidate: Callback | None = None, **callbacks: Unpack[ShimCallbacks]
    ) -> ShimNotifier: ...
    def bind(
        self,
        start: int,
        end: int,
        invalidate: Callback | None = None,
        **callbacks: Unpack[ShimCallbacks],
    ) -> ShimNotifier: ...


class WeakFileInfo(ShimFileInfo, Protocol):
    @property
    def opens(self) -> int:
        """How many open files it has, weak ones excluded."""


class WeakFile(ShimFile, Protocol):
    """A file that this object does not keep open."""

    def query(self) -> WeakFileInfo: ...


@runtime_checkable
class WeakShim(Protocol):
    """A connection that can name a file without keeping it open."""

    def weak_file(self, fd: int, /) -> WeakFile: ...


class Shim(Protocol):
    """A connection to a mount's daemon."""

    def file(self, file: int, /) -> ShimFile: ...
    def query_semantics(self) -> ShimSemantics: ...
    def query_pins(self) -> ShimPins: ...
