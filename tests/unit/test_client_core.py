"""The clients' core: the messages of a connection, without a connection."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs.client import requests
from inaccfs.client.core import Call, Conversation
from inaccfs.client.errors import (
    ConnectionLostError,
    ControlError,
    NotControlSocketError,
)
from inaccfs.client.requests import Pfn
from inaccfs.control import messages, qmp
from inaccfs.errors import InaccfsError
from tests.unit.client_talks import Talk
from tests.unit.fakes import refused

# --- how bytes become results -----------------------------------------------------


@given(st.lists(st.integers(1, 40), max_size=200), st.booleans())
def test_results_and_events_are_the_same_however_the_bytes_are_cut(
    cuts: list[int], line_ends: bool
) -> None:
    talk = Talk()
    calls: list[Call[Any]] = [
        talk.conversation.start(requests.get_pfn("/a", 3)),
        talk.conversation.start(requests.get_pfns("/a", 0, 2)),
        talk.conversation.start(requests.put_pfn("/a", 9, 1)),
    ]
    event = messages.Invalidate(notifier=1, start=2, end=3, sequence=4)
    extent = messages.Extent(0, 70, 2, 0)
    data = b"".join(
        [
            qmp.encode_return(messages.Frames(pfn=7, order=9), msgspec.Raw(b"1")),
            qmp.encode_event(event),
            qmp.encode_return(messages.Frames(extents=[extent]), msgspec.Raw(b"2")),
            b'{"event": "BRAND_NEW", "data": {"what": "}{"}}\n',
            qmp.encode_event(messages.Shutdown(reason="quit")),
            qmp.encode_error("GenericError", "EINVAL: none}", msgspec.Raw(b"3")),
        ]
    )
    if not line_ends:
        data = data.removesuffix(b"\r\n")
    events = []
    for size in [*cuts, len(data)]:
        if chunk := data[:size]:
            events += talk.conversation.feed(chunk)
        data = data[size:]
    assert [calls[0].result(), calls[1].result()] == [Pfn(7, 9), [extent]]
    with pytest.raises(OSError, match="none}"):
        calls[2].result()
    assert events == [event, messages.Shutdown(reason="quit")]
    assert talk.conversation.shutdown == "quit"
    assert talk.conversation.ended is None


@pytest.mark.parametrize(
    ("kind", "desc", "number", "text"),
    [
        ("GenericError", "EINVAL: past the end: 7", errno.EINVAL, "past the end: 7"),
        ("GenericError", "EOPNOTSUPP: no errors", errno.EOPNOTSUPP, "no errors"),
        ("GenericError", "ENOENT: no /a", errno.ENOENT, "no /a"),
        ("GenericError", "it broke", errno.EIO, "it broke"),
        ("GenericError", "ENOSUCHNAME: x", errno.EIO, "ENOSUCHNAME: x"),
        ("GenericError", "errorcode: x", errno.EIO, "errorcode: x"),
    ],
)
def test_an_error_is_an_oserror(
    talk: Talk, kind: str, desc: str, number: int, text: str
) -> None:
    call = talk.conversation.start(requests.get_pfn("/a", 7))
    talk.refuses(1, kind, desc)
    with pytest.raises(OSError, match=r".") as caught:
        call.result()
    assert (caught.value.errno, caught.value.strerror) == (number, text)
    assert type(caught.value) is type(OSError(number, text))


def test_each_reply_goes_to_its_command(talk: Talk) -> None:
    done: list[str] = []
    first = talk.conversation.start(
        requests.get_pfn("/a", 1), lambda: done.append("first")
    )
    second = talk.conversation.start(
        requests.get_pfn("/a", 2), lambda: done.append("second")
    )
    talk.returns(2, messages.Frames(pfn=22, order=0))
    assert (first.done, second.done, done) == (False, True, ["second"])
    talk.returns(1, messages.Frames(pfn=11, order=0))
    assert (first.result().pfn, second.result().pfn) == (11, 22)
    assert done == ["second", "first"]


def test_a_name_that_is_no_text_is_refused_before_it_is_sent(talk: Talk) -> None:
    with refused(errno.EILSEQ, "pass the fd"):
        talk.conversation.start(requests.get_pfn("/\udcff", 0))
    assert talk.sent() == []


# --- wrong input ------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", id="http"),
        pytest.param(b'{"execute": "query-version"}\n', id="a client"),
        pytest.param(b'{"return": {}, "id": 17}\n', id="a reply to nothing"),
        pytest.param(b'{"return": {}}\n', id="a reply without id"),
        pytest.param(b'{"return": {}, "id": "x"}\n', id="an id of another"),
        pytest.param(b'{"event": "INVALIDATE", "data": {}}\n', id="half an event"),
        pytest.param(b"\xff\xfe\n", id="no text"),
        pytest.param(b"[" * 20_000 + b"\n", id="deep"),
    ],
)
def test_a_violation_of_the_protocol_ends_the_conversation(
    talk: Talk, data: bytes
) -> None:
    call = talk.conversation.start(requests.get_pfn("/a", 7))
    talk.conversation.feed(data)
    with pytest.raises(
        NotControlSocketError, match=r"^/run/socket: (not|a reply to n)"
    ):
        call.result()
    with pytest.raises(NotControlSocketError):
        talk.conversation.start(requests.get_pfn("/a", 7)).result()


@pytest.mark.parametrize("value", ["{}", '{"pfn": "x"}', "[]", '{"extents": []}'])
def test_a_return_of_another_shape_costs_its_command(talk: Talk, value: str) -> None:
    call = talk.conversation.start(requests.get_pfn("/a", 7))
    talk.conversation.feed(f'{{"return": {value}, "id": 1}}\n'.encode())
    with pytest.raises(NotControlSocketError, match="get-pfn"):
        call.result()
    assert talk.conversation.ended is None


def test_the_end_fails_waiting_and_later_commands(talk: Talk) -> None:
    done: list[int] = []
    calls = [
        talk.conversation.start(requests.get_pfn("/a", n), lambda: done.append(1))
        for n in range(3)
    ]
    talk.conversation.feed(b"")
    calls.append(talk.conversation.start(requests.get_pfn("/a", 9)))
    errors = []
    for call in calls:
        with pytest.raises(ConnectionLostError) as caught:
            call.result()
        errors.append(caught.value)
    # Each waiter gets its own exception: a traceback would grow with each raise.
    assert len(set(map(id, errors))) == 4
    assert len(done) == 3
    assert isinstance(errors[0], InaccfsError)
    assert isinstance(errors[0], ConnectionError)
    assert errors[0].errno == errno.ECONNRESET
    assert str(errors[0]) == "/run/socket: the daemon has hung up; its log says why"


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (qmp.encode_event(messages.Shutdown(reason="quit")), r"has ended \(quit\)"),
        (
            qmp.encode_error("GenericError", "EMSGSIZE: too long", qmp.NO_ID),
            "EMSGSIZE: too long",
        ),
    ],
    ids=["shutdown", "complaint"],
)
def test_the_end_has_the_last_error_of_the_daemon(
    talk: Talk, before: bytes, why: str
) -> None:
    call = talk.conversation.start(requests.get_pfn("/a", 7))
    talk.conversation.feed(before)
    talk.conversation.feed(b"")
    with pytest.raises(ConnectionLostError, match=why):
        call.result()


def test_no_greeting_means_not_admitted() -> None:
    conversation = Conversation("/run/socket")
    conversation.feed(b"")
    with pytest.raises(ControlError, match="--allow-uid"):
        conversation.start(requests.QUERY_VERSION).result()


OLD = messages.VersionInfo(messages.VersionTriple(0, 1, 0), "inaccfs")
QEMU = (
    b'{"QMP": {"version": {"qemu": {"major": 9, "minor": 2, "micro": 0}, '
    b'"package": ""}, "capabilities": ["oob"]}}\n'
)
MOUNT_ANEW = "the daemon is inaccfs 0.1.0, and this is .*: unmount it, and mount it "


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> Talk:
    """A talk with a daemon of an older version."""
    with monkeypatch.context() as patch:
        patch.setattr(messages, "version", lambda: OLD)
        return Talk()


def test_an_older_daemon_that_lacks_a_command_is_enosys_and_what_to_do(
    old: Talk,
) -> None:
    call = old.conversation.start(requests.QUERY_STATS)
    old.refuses(1, "CommandNotFound", "The command query-stats has not been found")
    with pytest.raises(InaccfsError, match=MOUNT_ANEW) as caught:
        call.result()
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOSYS


def test_an_older_daemon_that_returns_something_else_is_what_to_do(old: Talk) -> None:
    call = old.conversation.start(requests.QUERY_STATS)
    old.returns(1, {})
    with pytest.raises(NotControlSocketError, match=MOUNT_ANEW):
        call.result()


def test_an_older_daemon_whose_event_is_not_understood_is_what_to_do(old: Talk) -> None:
    call = old.conversation.start(requests.QUERY_STATS)
    old.conversation.feed(b'{"event": "INVALIDATE", "data": {}}\n')
    with pytest.raises(NotControlSocketError, match=MOUNT_ANEW):
        call.result()


@pytest.mark.parametrize(
    "greeting",
    [
        QEMU,
        b'{"QMP": {}}\n',
        qmp.greeting(),
    ],
    ids=["qemu", "none", "ours"],
)
def test_of_other_programs_and_our_own_version_no_version_is_said(
    greeting: bytes,
) -> None:
    talk = Talk()
    talk.conversation = Conversation("/run/socket")
    talk.conversation.feed(greeting)
    call = talk.conversation.start(requests.QUERY_STATS)
    talk.refuses(1, "CommandNotFound", "no such command")
    with pytest.raises(OSError, match="no such command") as caught:
        call.result()
    assert str(caught.value) == "no such command"


# --- any command ------------------------------------------------------------------


def test_register_notifier_is_not_for_execute() -> None:
    with pytest.raises(TypeError, match="register_notifier"):
        requests.execute(messages.RegisterNotifier(file="/a"), None)


def test_execute_knows_which_command_takes_an_fd() -> None:
    with pytest.raises(ValueError, match="needs an fd"):
        requests.execute(messages.GetFd(fdname="x"), None)
    with pytest.raises(ValueError, match="takes no fd"):
        requests.execute(messages.Quit(), 1)


def test_a_path_and_an_fdname_are_distinguished() -> None:
    assert requests.check_path("/a") == "/a"
    with pytest.raises(ValueError, match="begins with /"):
        requests.check_path("a")
