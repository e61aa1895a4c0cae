"""Bugs that a test may put into the simulated KVM, each with a name.

`inaccfs kvm stress` and `inaccfs explore` have to find them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.backing import BackingFile, Frames
from inaccfs.kvm.invalidation import Invalidation
from inaccfs.kvm.memslots import MemorySlot
from inaccfs.kvm.mmu import Mmu
from inaccfs.kvm.notifier import SlotNotifier
from inaccfs.kvm.world import World
from tests.unit.kvm_guests import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def _zap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotNotifier, "_invalidate", lambda *_: None)


def _retry(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Invalidation, "retry", lambda *_: False)


def _arithmetic(patch: pytest.MonkeyPatch) -> None:
    right = MemorySlot.pgoff
    patch.setattr(
        MemorySlot, "pgoff", lambda self, gfn: right(self, gfn) + (self.id > 0)
    )


def _range(patch: pytest.MonkeyPatch) -> None:
    """The end of a range is taken as inclusive."""
    right = MemorySlot.gfns

    def gfns(self: MemorySlot, start: int, end: int) -> tuple[int, int] | None:
        found = right(self, start, end)
        return found and (found[0], max(found[1] - 1, found[0]))

    patch.setattr(MemorySlot, "gfns", gfns)


def _discard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("inaccfs.kvm.vmm.discard_private", lambda *_: None)


def _references(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BackingFile, "put", lambda *_: None)


def _puts(patch: pytest.MonkeyPatch) -> None:
    """A page that was got once is put twice."""
    right = BackingFile.put

    def put(self: BackingFile, frames: list[Frames]) -> None:
        right(self, frames)
        right(self, frames)

    patch.setattr(BackingFile, "put", put)


def _callback(patch: pytest.MonkeyPatch) -> None:
    def fail(_: SlotNotifier) -> None:
        raise RuntimeError("a bug")

    patch.setattr(SlotNotifier, "_count", fail)


def _unregister(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotNotifier, "close", lambda _: None)


def _counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Mmu, "_unmap", lambda *_: None)
    patch.setattr(
        Mmu, "zap_locked", lambda self, start, end, *_: self.table.zap(start, end)
    )


def _end(patch: pytest.MonkeyPatch) -> None:
    """Faults wait for an invalidation that never ends."""
    patch.setattr(Mmu, "end_locked", lambda self: self.changed.notify_all())


def _waiting(patch: pytest.MonkeyPatch) -> None:
    """A fault that waits is never woken."""
    patch.setattr(Mmu, "wait", lambda *_: threading.Event().wait(PATIENCE))


def _guest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "convert", lambda *_, **__: 1 / 0)


BUGS: Final[dict[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "zap": _zap,
    "retry": _retry,
    "arithmetic": _arithmetic,
    "range": _range,
    "discard": _discard,
    "references": _references,
    "puts": _puts,
    "callback": _callback,
    "unregister": _unregister,
    "counts": _counts,
    "end": _end,
    "waiting": _waiting,
    "guest": _guest,
}
