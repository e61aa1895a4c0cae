"""The client's side of notifiers: the callback for an event, and its answer.

Both faces follow these rules; they differ only in what runs a callback.

- Each event that needs an answer gets one: after its callback, or at once without one.
- If a notifier is unregistered while its callback runs, even by the callback itself,
  the callback returns first; events that come meanwhile are answered without a call.
- The exception of a callback is kept until it can be raised to the user.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypedDict

from inaccfs.client.errors import ClientClosedError, ControlError
from inaccfs.client.requests import Request, no_result
from inaccfs.control import messages
from inaccfs.control.messages import (
    Bind,
    CommitBind,
    Event,
    Invalidate,
    InvalidateDone,
    InvalidateEnd,
    InvalidateStart,
    Populate,
    RegisterNotifier,
    Unbind,
    UnregisterNotifier,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from inaccfs.client.core import Call, Conversation

    # Takes the first page, the page after the last, and what the options below add.
    Callback: TypeAlias = Callable[..., object]

log = logging.getLogger(__name__)

# The events of notifiers.
_NotifierEvent: TypeAlias = messages.Answered | messages.MemoryError


class Options(TypedDict, total=False):
    """The arguments of `register_notifier` and `bind` besides *invalidate*."""

    # INVALIDATE_START, INVALIDATE_END, POPULATE and MEMORY_ERROR.
    invalidate_start: Callback | None
    invalidate_end: Callback | None
    populate: Callback | None
    error: Callback | None
    # Whether callbacks also take a list of the removed extents; the kinds of pages; and
    # the start and end of the pages to zap, if these are fewer than the event's. Kinds
    # and zaps are None if events do not carry them.
    with_frames: bool
    with_kinds: bool
    with_zaps: bool


class Callbacks(NamedTuple):
    """The callbacks of a notifier; members are as in `Options`."""

    invalidate: Callback | None = None
    invalidate_start: Callback | None = None
    invalidate_end: Callback | None = None
    populate: Callback | None = None
    error: Callback | None = None
    with_frames: bool = False
    with_kinds: bool = False
    with_zaps: bool = False

    def check(self) -> Callbacks:
        """Return itself; `TypeError` if there is no callback."""
        if not any(self[:-3]):
            raise TypeError("a notifier needs a callback")
        return self

    def of(self, event: str) -> Callback | None:
        """The callback for the event of this name; None if it needs none.

        Raises:
            NotImplementedError: there is no callback, so the user would not learn that
                pages are removed.
        """
        match event:
            case Invalidate.name:
                return self._needed(
                    event, self.invalidate, self.invalidate_start or self.invalidate_end
                )
            case InvalidateStart.name:
                return self._needed(
                    event, self.invalidate_start or self.invalidate, self.invalidate_end
                )
            case InvalidateEnd.name:
                return self.invalidate_end
            case Populate.name:
                return self.populate
            case messages.MemoryError.name:
                return self.error
        return None

    def call(
        self,
        callback: Callback,
        start: int,
        end: int,
        frames: Iterable[object] | None,
        kinds: str | None = None,
        zaps: tuple[int, int] | None = None,
    ) -> object:
        """Call a callback: with *frames*, or [], if it takes them."""
        more: list[object] = [list(frames or ())] * self.with_frames
        more += [kinds] * self.with_kinds + [zaps] * self.with_zaps
        return callback(start, end, *more)

    @staticmethod
    def _needed(
        event: str, callback: Callback | None, other: Callback | None
    ) -> Callback | None:
        """*callback*; there must be one if there is the *other* one for removals."""
        if callback is None and other is not None:
            raise NotImplementedError(
                f"these semantics announce removals by {event}: give the notifier an "
                f"{event.lower()} callback"
            )
        return callback


class Registration:
    """One notifier."""

    def __init__(
        self,
        number: int,
        callbacks: Callbacks,
        on_left: Callable[[], object],
        *,
        bound: bool,
    ) -> None:
        self.number: Final = number
        # Whether it is bound to a range.
        self.bound: Final = bound
        self.callbacks: Final = callbacks
        # The number of running callbacks.
        self.calling = 0
        # No callback is called any more.
        self.leaving = False
        # The daemon has been asked to remove it.
        self.asked = False
        # The daemon has removed it, or has ended. Then `on_left` is called.
        self.left = False
        self._on_left = on_left
        # Why the removal failed.
        self._error: OSError | None = None
        # The first exception of its callbacks, and how many came later.
        self._raised: BaseException | None = None
        self._more = 0

    def keep(self, raised: BaseException) -> None:
        """Record an exception of a callback."""
        if self._raised is None:
            self._raised = raised
        else:
            self._more += 1

    def take_raised(self) -> BaseException | None:
        """The first exception of its callbacks since the last call."""
        raised, self._raised = self._raised, None
        if raised is not None:
            if self._more:
                raised.add_note(
                    f"{self._more} more calls of this notifier raised: see the log"
                )
            self._more = 0
        return raised

    def take_error(self) -> BaseException | None:
        """The exception for `unregister`: of a callback, or of the daemon."""
        error, self._error = self._error, None
        raised = self.take_raised()
        if raised is not None and error is not None:
            raised.add_note(f"and then: {error}")
        return raised or error

    def settle(self, error: OSError | None) -> None:
        """Mark it as no longer registered."""
        if not self.left:
            self.leaving = self.left = True
            self._error = error
            self._on_left()


class Registered:
    """The properties of a registered notifier in both faces."""

    def __init__(self, registration: Registration) -> None:
        self._registration: Final = registration

    @property
    def number(self) -> int:
        """Its number at the daemon, as in `query_notifiers`."""
        return self._registration.number

    @property
    def registered(self) -> bool:
        """False after `unregister`, and after the daemon has ended or hung up."""
        return not self._registration.leaving


class Range(NamedTuple):
    """The range that a notifier is bound to, in pages."""

    start: int
    end: int
    exclusive: bool | None = None
    # Whether `commit` makes it effective, and not `bind`.
    prepare: bool = False


class Due(NamedTuple):
    """A callback that is due."""

    registration: Registration
    callback: Callback
    event: _NotifierEvent

    def call(self) -> object:
        """Call it."""
        event = self.event
        call, callback = self.registration.callbacks.call, self.callback
        if isinstance(event, messages.MemoryError):
            return call(callback, event.start, event.end, None)
        frames, kinds = event.frames or None, event.kinds or None
        return call(callback, event.start, event.end, frames, kinds, event.fewer)


class Notifiers:
    """The notifiers of one connection."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation: Final = conversation
        self._registered: Final[dict[int, Registration]] = {}
        # Notifiers whose callbacks raised exceptions that no caller has got yet.
        self._raised: Final[list[Registration]] = []
        conversation.on_end = self._end

    def __len__(self) -> int:
        return len(self._registered)

    def register(
        self,
        file: str,
        callbacks: Callbacks,
        on_left: Callable[[], object],
        bound: Range | None = None,
    ) -> Request[Registration]:
        """The request that registers one; *on_left* is called after its removal."""

        def interpret(returned: messages.Notifier) -> Registration:
            # Do this at once, and not when the caller runs again: the next bytes may be
            # its first event.
            registration = Registration(
                returned.notifier, callbacks, on_left, bound=bound is not None
            )
            self._registered[registration.number] = registration
            return registration

        if bound is None:
            return Request(RegisterNotifier(file=file), interpret)
        start, end, exclusive, prepare = bound
        command = Bind(
            file=file, start=start, end=end, exclusive=exclusive, prepare=prepare
        )
        return Request(command, interpret)

    def commit(self, registration: Registration) -> Request[None]:
        """The request that commits a prepared binding. If it fails, forget that."""
        return no_result(CommitBind(notifier=registration.number))

    def forget(self, registration: Registration) -> None:
        """Forget a notifier that the daemon has refused to commit, and has removed."""
        self._registered.pop(registration.number, None)
        registration.settle(None)

    def abandon(self, call: Call[Registration]) -> None:
        """Undo an abandoned registration, now or once it is done."""
        if call.done and call.error is None:
            self.leave(call.result())
        else:
            self._conversation.abandon(call)

    def begin(self, event: Event) -> Due | None:
        """Handle an event; return the callback that is due, if any."""
        if not isinstance(event, _NotifierEvent):
            return None
        registration = self._registered.get(event.notifier)
        if registration is not None and not registration.leaving:
            try:
                callback = registration.callbacks.of(event.name)
            except NotImplementedError as exc:
                log.error("%s: %s", event.name, exc)  # noqa: TRY400 - there is no traceback
                self._keep(registration, exc)
            else:
                if callback is not None:
                    registration.calling += 1
                    return Due(registration, callback, event)
        self._answer(event)
        return None

    def finish(self, due: Due, raised: BaseException | None) -> None:
        """Record that a callback has returned, or *raised*; answer its event."""
        registration = due.registration
        registration.calling -= 1
        if raised is not None:
            log.error("a callback for %s raised", due.event.name, exc_info=raised)
            self._keep(registration, raised)
        self._answer(due.event)
        if registration.leaving and not registration.calling:
            self._unregister(registration)

    def _keep(self, registration: Registration, raised: BaseException) -> None:
        registration.keep(raised)
        if registration not in self._raised:
            self._raised.append(registration)

    def _answer(self, event: _NotifierEvent) -> None:
        if isinstance(event, messages.Answered):
            answer = InvalidateDone(notifier=event.notifier, sequence=event.sequence)
            # A late answer is refused; the daemon has disconnected us by then.
            self._conversation.start_unawaited([answer], quietly=True)

    def leave(self, registration: Registration) -> None:
        """Call no more callbacks, and unregister as soon as none is running."""
        registration.leaving = True
        if not registration.calling:
            self._unregister(registration)

    def _unregister(self, registration: Registration) -> None:
        if registration.asked or registration.left:
            return
        leave = Unbind if registration.bound else UnregisterNotifier
        command = leave(notifier=registration.number)
        call = self._conversation.start(no_result(command))
        # Set afterwards, so that a thread that is interrupted here can ask again.
        registration.asked = True

        def done() -> None:
            self._registered.pop(registration.number, None)
            registration.settle(self._unexpected(call.error))

        if call.done:
            done()
        else:
            call.on_done = done

    def _unexpected(self, error: OSError | None) -> OSError | None:
        """*error*, unless the client was closed or the daemon has shut down.

        In these cases a notifier is expected to end.
        """
        expected = isinstance(error, ClientClosedError) or (
            isinstance(error, ControlError) and self._conversation.shutdown is not None
        )
        return None if expected else error

    def _end(self) -> None:
        ended = self._conversation.ended
        assert ended is not None
        if self._registered and self._unexpected(ended):
            log.error("%s; notifiers registered no more: %d", ended, len(self))
        for registration in self._registered.values():
            registration.settle(self._unexpected(ended.again()))
        self._registered.clear()

    def take_raised(self) -> BaseException | None:
        """The first exception not raised yet; its notes mention the others."""
        errors = [registration.take_raised() for registration in self._raised]
        self._raised.clear()
        raised = [error for error in errors if error is not None]
        if len(raised) > 1:
            more = len(raised) - 1
            raised[0].add_note(f"callbacks of {more} more notifiers raised, too")
        return raised[0] if raised else None


def raise_or_note(
    raised: BaseException | None, leaving_for: BaseException | None
) -> None:
    """Raise *raised* at the end of a with block, unless the block itself raised.

    In that case the block's exception gets a note; the log has *raised*, too.
    """
    if raised is None:
        return
    if leaving_for is None:
        raise raised
    leaving_for.add_note(f"besides, of a notifier: {raised!r}")
