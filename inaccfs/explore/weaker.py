"""KVMs that leave something out: what does an interface still keep safe?

Each is a defect that the tests of `inaccfs kvm stress` inject. It is put into one VM.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.explore.invariants import CountedInvalidation, NoRetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.explore.client import ExploredClient
    from inaccfs.inprocess import Due
    from inaccfs.kvm import VM


class Kvm(NamedTuple):
    """How a VM is made."""

    text: str
    invalidation: type[CountedInvalidation] = CountedInvalidation
    # Calls a callback, and answers.
    listen: Callable[[ExploredClient, Due], None] | None = None
    spoil: Callable[[VM, ExploredClient], None] | None = None


def _answer_first(client: ExploredClient, due: Due) -> None:
    client.answer(due)
    client.schedule.point("zaps at last")
    client.call(due)


def _deaf(client: ExploredClient, due: Due) -> None:
    client.answer(due)


def _short(client: ExploredClient, due: Due) -> None:
    """As with an end that is taken to be inclusive."""
    notice = due.notice
    unit = notice.end - notice.start - 1
    client.call(due._replace(notice=notice._replace(end=notice.start + unit)))
    client.answer(due)


def _no_flush(vm: VM, _: ExploredClient) -> None:
    vm._mmu.__dict__["flush"] = lambda: None


def _no_end(vm: VM, _: ExploredClient) -> None:
    mmu = vm._mmu
    mmu.__dict__["end_locked"] = lambda: mmu.changed.notify_all()


def _no_wake(vm: VM, client: ExploredClient) -> None:
    def wait(start: int, end: int) -> None:
        if vm._mmu.invalidation.covers(start, end):
            client.schedule.point("waits for nobody", lambda: False)

    vm._mmu.__dict__["wait"] = wait


def _puts(count: int, _: VM, client: ExploredClient) -> None:
    client.puts_each = count


def _no_unregister(_: VM, client: ExploredClient) -> None:
    client.unregisters = False


KVMS: Final = {
    "kvm": Kvm("KVM as it is"),
    "no-retry": Kvm("installs what it has found, whatever came meanwhile", NoRetry),
    "zap-after-ack": Kvm("answers an event first, and zaps then", listen=_answer_first),
    "no-zap": Kvm("answers events, and does nothing", listen=_deaf),
    "short-zap": Kvm("takes the end of an event's range for its last", listen=_short),
    "no-flush": Kvm("zaps, and does not wait for vCPUs", spoil=_no_flush),
    "no-end": Kvm("never ends an invalidation", spoil=_no_end),
    "no-wake": Kvm("waits for an end, and nothing wakes it then", spoil=_no_wake),
    "no-put": Kvm("keeps its references", spoil=partial(_puts, 0)),
    "put-twice": Kvm("puts each reference twice", spoil=partial(_puts, 2)),
    "no-unregister": Kvm("leaves its notifiers", spoil=_no_unregister),
}
"""By name; the first is the sound one."""
