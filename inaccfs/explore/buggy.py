"""KVMs with a bug: which interfaces are still safe with them?

Each is a defect that the tests of `inaccfs kvm stress` inject. It is put into one VM.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.explore.retrying import CountedInvalidation, NoRetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.explore.client import ExploredClient
    from inaccfs.explore.vm import ExploredVM
    from inaccfs.inprocess import Due


class Kvm(NamedTuple):
    """How a VM is made."""

    text: str
    invalidation: type[CountedInvalidation] = CountedInvalidation
    # Calls a callback, and answers.
    listen: Callable[[ExploredClient, Due], None] | None = None
    inject: Callable[[ExploredVM, ExploredClient], None] | None = None


def _answer_first(client: ExploredClient, due: Due) -> None:
    client.answer(due)
    client.schedule.point("zaps at last")
    client.call(due)


def _deaf(client: ExploredClient, due: Due) -> None:
    client.answer(due)


def _short(client: ExploredClient, due: Due) -> None:
    """Zap one page less, as if the end of a range were its last page."""
    notice = due.notice
    unit = notice.end - notice.start - 1
    client.call(due._replace(notice=notice._replace(end=notice.start + unit)))
    client.answer(due)


def _no_flush(vm: ExploredVM, _: ExploredClient) -> None:
    vm._mmu.__dict__["flush"] = lambda: None


def _no_end(vm: ExploredVM, _: ExploredClient) -> None:
    mmu = vm._mmu
    mmu.__dict__["end_locked"] = lambda: mmu.changed.notify_all()


def _no_wake(vm: ExploredVM, client: ExploredClient) -> None:
    def wait(start: int, end: int) -> None:
        if vm._mmu.invalidation.covers(start, end):
            client.schedule.point("waits for nobody", lambda: False)

    vm._mmu.__dict__["wait"] = wait


def _puts(count: int, _: ExploredVM, client: ExploredClient) -> None:
    client.puts_each = count


def _no_unregister(_: ExploredVM, client: ExploredClient) -> None:
    client.unregisters = False


def _fail() -> None:
    raise RuntimeError("a bug")


def _raises(_: ExploredVM, client: ExploredClient) -> None:
    client.bug = _fail


def _next_page(_: ExploredVM, client: ExploredClient) -> None:
    client.asks_next_page = True


def _no_discard(vm: ExploredVM, _: ExploredClient) -> None:
    vm.vmm.__dict__["_discard"] = False


def _no_counts(vm: ExploredVM, _: ExploredClient) -> None:
    mmu = vm._mmu

    def zap(start: int, end: int, _kinds: str | None = None) -> None:
        mmu.table.zap(start, end)
        mmu.flush()

    mmu.__dict__["zap_locked"] = zap


KVMS: Final = {
    "kvm": Kvm("KVM as it is"),
    "no-retry": Kvm("does not check mmu_invalidate_seq before it installs", NoRetry),
    "zap-after-ack": Kvm("answers an event first, and zaps then", listen=_answer_first),
    "no-zap": Kvm("answers events, and does nothing", listen=_deaf),
    "short-zap": Kvm("takes the end of an event's range for its last", listen=_short),
    "no-flush": Kvm("zaps, and does not wait for vCPUs", inject=_no_flush),
    "no-end": Kvm("never ends an invalidation", inject=_no_end),
    "no-wake": Kvm("is not woken when an invalidation ends", inject=_no_wake),
    "no-put": Kvm("keeps its references", inject=partial(_puts, 0)),
    "put-twice": Kvm("puts each reference twice", inject=partial(_puts, 2)),
    "no-unregister": Kvm("leaves its notifiers", inject=_no_unregister),
    "wrong-page": Kvm("asks for a page next to the right one", inject=_next_page),
    "no-discard": Kvm("converts, and does not punch", inject=_no_discard),
    "callback-raises": Kvm("has a bug in its callback", inject=_raises),
    "no-counts": Kvm("does not count what it zaps", inject=_no_counts),
}
"""By name; the first is the sound one."""
