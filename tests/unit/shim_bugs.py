"""Bugs that a test may put into the shim, each with a name."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from inaccfs.inprocess.client import Client
from inaccfs.shim.locks import PageLocks
from inaccfs.shim.memory import Memory
from inaccfs.shim.notifiers import Notice, Notifiers
from inaccfs.shim.pages import Pages
from inaccfs.shim.references import References

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from inaccfs.shim.frames import Extent
    from inaccfs.shim.memory import Holder
    from inaccfs.shim.notifiers import Notifier

    Patch = pytest.MonkeyPatch


# --- events ---------------------------------------------------------------------------


def _no_event(patch: Patch) -> None:
    patch.setattr(Notifiers, "_concerned", lambda *_: [])


def _forgets_a_notifier(patch: Patch) -> None:
    """The last notifier of the list gets no event."""
    right = Notifiers._concerned
    patch.setattr(Notifiers, "_concerned", lambda *args: right(*args)[:1])


def _waits_for_nobody(patch: Patch) -> None:
    right = Notifiers._expect

    def expect(self: Notifiers, *args: Any) -> int:
        found = right(self, *args)
        self._then()
        return found

    patch.setattr(Notifiers, "_expect", expect)


def _loses_answers(patch: Patch) -> None:
    patch.setattr(Notifiers, "answer", lambda *_: None)


def _keeps_who_has_gone(patch: Patch) -> None:
    """An invalidation also waits for notifiers that were unregistered."""
    patch.setattr(Notifiers, "drop", lambda *_: None)


def _wrong_unit(patch: Patch) -> None:
    """Events have pages where they should have bytes."""

    def other(notice: Notice) -> Notice:
        return notice._replace(start=notice.start << 12, end=notice.end << 12)

    _send_instead(patch, other)


def _short_event(patch: Patch) -> None:
    """An event lacks the last page."""
    _send_instead(patch, lambda notice: notice._replace(end=notice.end - 1))


def _send_instead(patch: Patch, other: Callable[[Notice], Notice]) -> None:
    right = Notifiers._send

    def send(
        self: Notifiers, notifier: Notifier, notice: Notice, sequence: int | None
    ) -> None:
        right(self, notifier, other(notice), sequence)

    patch.setattr(Notifiers, "_send", send)


def _unlocked_list(patch: Patch) -> None:
    @asynccontextmanager
    async def fixed(self: Notifiers) -> AsyncIterator[None]:
        yield

    patch.setattr(Notifiers, "fixed", fixed)


def _fails_in_silence(patch: Patch) -> None:
    """A page is poisoned, and no notifier gets an event."""

    async def announce(_self: Notifiers, _notice: Notice) -> None:
        """Nothing."""

    patch.setattr(Notifiers, "announce", announce)


# --- pages ----------------------------------------------------------------------------


def _no_page_locks(patch: Patch) -> None:
    patch.setattr(Pages, "locked", lambda *_: nullcontext())


def _punch_waits_for_ever(patch: Patch) -> None:
    """A put unlocks its page, and does not wake the punch."""
    patch.setattr(PageLocks, "unlocked", lambda _: None)


def _forgets_a_put(patch: Patch) -> None:
    patch.setattr(Pages, "put", lambda *_: None)


def _puts_twice(patch: Patch) -> None:
    right = Memory.put

    def put(self: Memory, holder: Holder, pfn: int, count: int) -> None:
        right(self, holder, pfn, count)
        right(self, holder, pfn, count)

    patch.setattr(Memory, "put", put)


def _frees_what_is_held(patch: Patch) -> None:
    def punched(self: References, extents: list[Extent]) -> list[tuple[int, int]]:
        return [(pfn, count) for _, pfn, count, _ in extents]

    patch.setattr(References, "punched", punched)


def _never_frees(patch: Patch) -> None:
    patch.setattr(Memory, "_free", lambda *_: None)


def _keeps_what_the_dead_had(patch: Patch) -> None:
    patch.setattr(Client, "_drop_references", lambda _: None)


def _forgets_the_frame(patch: Patch) -> None:
    """A punch removes a page, and get-pfn still returns its frame."""
    patch.setattr("inaccfs.shim.frames.Table.record", _record)


def _record(*_: object) -> None:
    """Nothing."""


BUGS: Final[dict[str, Callable[[Patch], None]]] = {
    "no event": _no_event,
    "forgets a notifier": _forgets_a_notifier,
    "waits for nobody": _waits_for_nobody,
    "loses answers": _loses_answers,
    "keeps who has gone": _keeps_who_has_gone,
    "wrong unit": _wrong_unit,
    "short event": _short_event,
    "unlocked list": _unlocked_list,
    "fails in silence": _fails_in_silence,
    "no page locks": _no_page_locks,
    "unlocks and wakes nobody": _punch_waits_for_ever,
    "forgets a put": _forgets_a_put,
    "puts twice": _puts_twice,
    "frees what is held": _frees_what_is_held,
    "never frees": _never_frees,
    "keeps what the dead had": _keeps_what_the_dead_had,
}
