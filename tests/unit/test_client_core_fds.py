"""Fds in the clients' core: which return takes one, and who closes it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import msgspec
import pytest

from inaccfs.client import requests
from inaccfs.client.core import Conversation
from inaccfs.client.errors import ClientClosedError, ControlError
from inaccfs.control import qmp
from tests.unit.client_talks import Talk, is_open, new_fd
from tests.unit.fakes import refused

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSED = ClientClosedError("closed")


def test_an_fd_is_taken_by_the_return_that_it_belongs_to(talk: Talk) -> None:
    fds = [new_fd(), new_fd()]
    first = talk.conversation.start(requests.get_memory("/a"))
    refused = talk.conversation.start(requests.get_memory("/none"))
    second = talk.conversation.start(requests.get_memory("/b"))
    data = (
        qmp.encode_return({}, msgspec.Raw(b"1"))
        + qmp.encode_error("GenericError", "ENOENT: no", msgspec.Raw(b"2"))
        + qmp.encode_return({}, msgspec.Raw(b"3"))
    )
    talk.conversation.feed(data[:60], fds)
    talk.conversation.feed(data[60:])
    assert [first.result(), second.result()] == fds
    assert isinstance(refused.error, FileNotFoundError)
    for fd in fds:
        os.close(fd)


def test_surplus_fds_are_closed(talk: Talk) -> None:
    fds = (new_fd(), new_fd(), new_fd())
    call = talk.conversation.start(requests.get_memory("/a"))
    talk.returns(1, {}, fds)
    assert call.result() == fds[0]
    assert list(map(is_open, fds)) == [True, False, False]
    os.close(fds[0])


def test_a_return_without_its_fd_is_an_error(talk: Talk) -> None:
    call = talk.conversation.start(requests.get_memory("/a"))
    talk.returns(1, {})
    with refused(errno.EMFILE, "too many"):
        call.result()


def test_an_fd_to_be_sent_is_the_cores_own(talk: Talk) -> None:
    """The caller may close its fd before the message is sent."""
    fd = new_fd()
    talk.conversation.start(requests.get_fd("x", fd))
    os.close(fd)
    [(_, own)] = talk.conversation.take_outgoing()
    assert own is not None
    assert not os.get_inheritable(own)
    os.close(own)


@pytest.mark.parametrize("end", [Conversation.end, Conversation.disown])
def test_the_end_closes_fds_on_their_way(
    talk: Talk, end: Callable[[Conversation, ControlError], None]
) -> None:
    fd, came = new_fd(), new_fd()
    talk.conversation.start(requests.get_memory("/a"))
    talk.sent()
    talk.conversation.start(requests.get_fd("x", fd))
    talk.conversation.feed(b'{"return"', [came])
    before = len(os.listdir("/proc/self/fd"))
    end(talk.conversation, CLOSED)
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert not is_open(came)
    os.close(fd)


def test_a_child_calls_no_callback_of_its_parent(talk: Talk) -> None:
    """The child lacks the threads of the callbacks, and their locks may be locked."""
    woken: list[str] = []
    talk.conversation.start(requests.QUERY_VERSION, lambda: woken.append("call"))
    talk.conversation.on_end = lambda: woken.append("end")
    talk.conversation.disown(CLOSED)
    assert woken == []
    with pytest.raises(ClientClosedError):
        talk.conversation.start(requests.QUERY_VERSION).result()


def test_a_file_that_is_not_open_cannot_be_sent(talk: Talk) -> None:
    fd = new_fd()
    os.close(fd)
    with refused(errno.EBADF):
        talk.conversation.start(requests.get_fd("x", fd))
    assert talk.sent() == []
