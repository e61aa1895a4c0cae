"""Which callback gets an event, and when it is answered: the rules of both clients."""

from __future__ import annotations

import inspect

import msgspec
import pytest

from inaccfs.client import aio, blockingfile
from inaccfs.client.errors import ClientClosedError, ConnectionLostError
from inaccfs.client.notifying import Callbacks, Options, raise_or_note
from inaccfs.control import messages, qmp
from inaccfs.control.messages import (
    Invalidate,
    InvalidateEnd,
    InvalidateStart,
    Shutdown,
)
from tests.unit.notifying_talks import Said, Talk, nothing

DONE: Said = ("invalidate-done", {"notifier": 7, "sequence": 1})
LEAVE: Said = ("unregister-notifier", {"notifier": 7})


def first(start: int, end: int) -> None:
    pass


def invalidate(notifier: int = 7, sequence: int = 1) -> Invalidate:
    return Invalidate(notifier=notifier, start=2, end=3, sequence=sequence)


@pytest.fixture
def talk() -> Talk:
    return Talk()


# --- answers ----------------------------------------------------------------------


@pytest.mark.parametrize("raised", [None, ValueError("x")], ids=["returns", "raises"])
def test_an_event_is_answered_when_its_callback_has_ended(
    talk: Talk, raised: Exception | None
) -> None:
    talk.register()
    due = talk.notifiers.begin(invalidate())
    assert due is not None
    assert due.callback is nothing
    assert talk.said() == []
    talk.notifiers.finish(due, raised)
    assert talk.said() == [DONE]


def test_an_event_for_an_unknown_notifier_is_answered_at_once(talk: Talk) -> None:
    """Its registration was cancelled, for example."""
    assert talk.notifiers.begin(invalidate()) is None
    assert talk.said() == [DONE]


def test_an_event_that_wants_no_answer_gets_none(talk: Talk) -> None:
    talk.register(Callbacks(nothing, error=first))
    poisoned = messages.MemoryError(notifier=7, start=2, end=3)
    due = talk.notifiers.begin(poisoned)
    assert due is not None
    assert due.callback is first
    talk.notifiers.finish(due, None)
    assert talk.notifiers.begin(Shutdown(reason="quit")) is None
    assert talk.said() == []


def test_a_notifier_is_there_before_the_next_bytes_are_read(talk: Talk) -> None:
    """Its first event may come with the reply, before the caller runs again."""
    talk.conversation.start(
        talk.notifiers.register("/a", Callbacks(nothing), lambda: None)
    )
    returned = messages.Notifier(notifier=7)
    events = talk.conversation.feed(
        qmp.encode_return(returned, msgspec.Raw(b"1")) + qmp.encode_event(invalidate())
    )
    assert [talk.notifiers.begin(event) is not None for event in events] == [True]


def test_a_late_answer_that_is_refused_is_no_news(
    talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    due = talk.notifiers.begin(invalidate())
    assert due is None
    talk.said()
    talk.refuse("ENOENT: this peer has no notifier 7")
    assert caplog.records == []


# --- which callback ---------------------------------------------------------------

START = InvalidateStart(notifier=7, start=2, end=3, sequence=1)
END = InvalidateEnd(notifier=7, start=2, end=3, sequence=1)


@pytest.mark.parametrize(
    ("callbacks", "event", "called"),
    [
        (Callbacks(nothing), START, nothing),
        (Callbacks(nothing, invalidate_start=first), START, first),
        (Callbacks(nothing, invalidate_start=first), invalidate(), nothing),
        (Callbacks(nothing), END, None),
        (Callbacks(invalidate_end=first), END, first),
        (Callbacks(error=first), invalidate(), None),
        (Callbacks(error=first), START, None),
    ],
)
def test_which_callback_an_event_is_for(
    talk: Talk, callbacks: Callbacks, event: messages.Event, called: object
) -> None:
    talk.register(callbacks)
    due = talk.notifiers.begin(event)
    assert (due.callback if due else None) is called
    assert talk.said() == ([] if due else [DONE])
    assert talk.notifiers.take_raised() is None


@pytest.mark.parametrize(
    ("callbacks", "event", "wanted"),
    [
        (Callbacks(invalidate_start=nothing), invalidate(), "invalidate"),
        (Callbacks(invalidate_end=nothing), invalidate(), "invalidate"),
        (Callbacks(invalidate_end=nothing), START, "invalidate_start"),
    ],
    ids=["start only", "end only", "end only, of a start"],
)
def test_callbacks_that_would_miss_removals_are_refused(
    talk: Talk,
    callbacks: Callbacks,
    event: Invalidate | InvalidateStart,
    wanted: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The callbacks are for other semantics than the mount's, or only for an end."""
    registration = talk.register(callbacks)
    assert talk.notifiers.begin(event) is None
    assert talk.said() == [DONE]
    assert event.name in caplog.text
    with pytest.raises(NotImplementedError, match=f"an {wanted} callback"):
        raise_or_note(registration.take_error(), None)


def test_nothing_to_call_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="callback"):
        Callbacks().check()


# --- leaving ----------------------------------------------------------------------


def test_a_notifier_has_left_when_the_daemon_says_so(talk: Talk) -> None:
    registration = talk.register()
    talk.notifiers.leave(registration)
    assert talk.said() == [LEAVE]
    assert (registration.left, talk.left) == (False, [])
    talk.answer()
    assert (registration.left, talk.left) == (True, [7])
    assert registration.take_error() is None
    assert len(talk.notifiers) == 0


def test_a_running_callback_returns_before_its_notifier_is_unregistered(
    talk: Talk,
) -> None:
    """The daemon would take unregister for the answer, and remove the pages."""
    registration = talk.register()
    due = talk.notifiers.begin(invalidate())
    assert due is not None
    talk.notifiers.leave(registration)
    assert talk.said() == []
    # Events that come meanwhile are answered: unregister may wait for these answers.
    assert talk.notifiers.begin(invalidate(sequence=2)) is None
    assert talk.said() == [("invalidate-done", {"notifier": 7, "sequence": 2})]
    talk.notifiers.finish(due, None)
    assert talk.said() == [DONE, LEAVE]


def test_the_last_callback_that_runs_unregisters(talk: Talk) -> None:
    registration = talk.register()
    dues = [talk.notifiers.begin(invalidate(sequence=n)) for n in (1, 2)]
    talk.notifiers.leave(registration)
    for due in dues:
        assert due is not None
        assert LEAVE not in talk.said()
        talk.notifiers.finish(due, None)
    assert talk.said()[-1] == LEAVE


def test_to_leave_twice_is_to_leave(talk: Talk) -> None:
    registration = talk.register()
    talk.notifiers.leave(registration)
    talk.notifiers.leave(registration)
    assert talk.said() == [LEAVE]
    talk.answer()
    talk.notifiers.leave(registration)
    assert talk.said() == []
    assert talk.left == [7]


def test_a_refusal_of_the_daemon_is_kept(talk: Talk) -> None:
    registration = talk.register()
    talk.notifiers.leave(registration)
    talk.said()
    talk.refuse("ENOENT: this peer has no notifier 7")
    assert talk.left == [7]
    assert isinstance(registration.take_error(), FileNotFoundError)
    assert registration.take_error() is None


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_registration_without_a_waiting_caller_is_undone(
    talk: Talk, late: bool
) -> None:
    call = talk.conversation.start(
        talk.notifiers.register("/a", Callbacks(nothing), lambda: None)
    )
    talk.said()
    if not late:
        talk.notifiers.abandon(call)
    talk.answer(messages.Notifier(notifier=7))
    if late:
        talk.notifiers.abandon(call)
    assert talk.said() == [LEAVE]
    assert talk.notifiers.begin(invalidate()) is None


# --- what callbacks raise ---------------------------------------------------------


def test_the_first_exception_is_kept_and_the_rest_counted(
    talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    registration = talk.register()
    errors = [ValueError("one"), ValueError("two"), ValueError("three")]
    for error in errors:
        due = talk.notifiers.begin(invalidate())
        assert due is not None
        talk.notifiers.finish(due, error)
    assert registration.take_error() is errors[0]
    assert errors[0].__notes__ == ["2 more calls of this notifier raised: see the log"]
    assert [
        record.exc_info[1] for record in caplog.records if record.exc_info
    ] == errors
    # The exception is raised once.
    assert registration.take_error() is None
    assert talk.notifiers.take_raised() is None


def test_an_exception_not_raised_yet_is_raised_at_the_end(talk: Talk) -> None:
    errors = [ValueError("one"), ValueError("two")]
    for number, error in enumerate(errors):
        talk.register(number=number)
        due = talk.notifiers.begin(invalidate(number))
        assert due is not None
        talk.notifiers.finish(due, error)
    talk.said()
    talk.conversation.end(ClientClosedError("closed"))
    assert talk.notifiers.take_raised() is errors[0]
    assert errors[0].__notes__ == ["callbacks of 1 more notifiers raised, too"]
    assert talk.notifiers.take_raised() is None


def test_which_exception_leaves_a_block() -> None:
    error, other = ValueError("mine"), KeyError("other")
    raise_or_note(None, None)
    with pytest.raises(ValueError, match="mine") as caught:
        raise_or_note(error, None)
    assert caught.value is error
    raise_or_note(error, other)
    assert other.__notes__ == ["besides, of a notifier: ValueError('mine')"]


# --- the end of the connection ----------------------------------------------------


def test_a_disconnection_is_raised_once(
    talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    registration = talk.register()
    talk.conversation.feed(b"")
    assert talk.left == [7]
    assert isinstance(registration.take_error(), ConnectionLostError)
    assert "registered no more" in caplog.text
    talk.notifiers.leave(registration)
    assert registration.take_error() is None


def test_a_callback_that_raised_comes_before_the_lost_connection(talk: Talk) -> None:
    registration = talk.register()
    due = talk.notifiers.begin(invalidate())
    assert due is not None
    talk.conversation.feed(b"")
    error = ValueError("x")
    talk.notifiers.finish(due, error)
    assert registration.take_error() is error
    assert "hung up" in error.__notes__[0]


def test_a_notifier_goes_with_its_daemon(
    talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    registration, other = talk.register(), talk.register(number=8)
    talk.notifiers.leave(other)
    talk.conversation.feed(qmp.encode_event(Shutdown(reason="quit")))
    talk.conversation.feed(b"")
    assert registration.take_error() is None
    assert other.take_error() is None
    assert sorted(talk.left) == [7, 8]
    assert caplog.records == []


def test_a_notifier_goes_with_its_client(
    talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    registration = talk.register()
    talk.conversation.end(ClientClosedError("closed"))
    assert registration.take_error() is None
    assert talk.left == [7]
    assert caplog.records == []


def test_a_callback_may_outlive_the_connection(talk: Talk) -> None:
    registration = talk.register()
    due = talk.notifiers.begin(invalidate())
    assert due is not None
    talk.notifiers.leave(registration)
    talk.conversation.end(ClientClosedError("closed"))
    talk.notifiers.finish(due, None)
    assert talk.said() == []
    assert talk.left == [7]


# --- callbacks that a client accepts --------------------------------------------------


@pytest.mark.parametrize(
    "face", [blockingfile.File, aio.File], ids=["blocking", "trio"]
)
def test_the_help_of_a_face_names_each_callback(
    face: type[blockingfile.File | aio.File],
) -> None:
    """The signature has them as `Options`."""
    doc = blockingfile.File.register_notifier.__doc__
    assert doc is not None
    for name in ("invalidate", *Options.__annotations__):
        assert f"*{name}*" in doc
    for method in (face.register_notifier, face.bind):
        assert "Unpack[Options]" in str(inspect.signature(method))


def test_a_callback_of_a_wrong_name_is_a_mistake() -> None:
    """For mypy, which the comment below proves, and at run time."""
    file = blockingfile.File.__new__(blockingfile.File)
    with pytest.raises(TypeError, match="invalidates"):
        file.register_notifier(invalidates=nothing)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="invalidates"):
        file.bind(0, 1, invalidates=nothing)  # type: ignore[call-arg]
