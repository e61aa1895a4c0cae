"""Abandoned commands in the clients' core: what they got is given back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs.client import requests
from inaccfs.control import messages
from inaccfs.control.messages import MFD_CLOEXEC
from tests.unit.client_talks import Talk, is_open, new_fd

FRAMES = messages.Frames(pfn=70, order=0)
EXTENTS = messages.Frames(
    extents=[messages.Extent(0, 70, 5, 0), messages.Extent(5, 90, 2, 0)]
)


@pytest.mark.parametrize(
    ("request_", "returned", "undone"),
    [
        (requests.get_pfn("/a", 7), FRAMES, [("put-pfn", {"file": "/a", "pfn": 70})]),
        (
            requests.get_pfns("/a", 0, 7),
            EXTENTS,
            [
                (
                    "put-pfn",
                    {
                        "file": "/a",
                        "extents": [{"pfn": 70, "count": 5}, {"pfn": 90, "count": 2}],
                    },
                )
            ],
        ),
        (requests.close_fd("x"), {}, []),
        (requests.QUERY_VERSION, messages.version(), []),
    ],
    ids=["get-pfn", "extents", "closefd", "query"],
)
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_the_result_of_an_abandoned_command_is_given_back(
    talk: Talk,
    request_: requests.Request[Any],
    returned: object,
    undone: list[tuple[str, dict[str, Any]]],
    late: bool,
) -> None:
    woken: list[int] = []
    call = talk.conversation.start(request_, lambda: woken.append(1))
    assert len(talk.sent()) == 1
    if not late:
        talk.conversation.abandon(call)
        assert talk.sent() == []
    talk.returns(1, returned)
    if late:
        assert talk.sent() == []
        talk.conversation.abandon(call)
    assert [said[:2] for said in talk.sent()] == undone
    assert woken == ([1] if late else [])


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_the_fds_of_an_abandoned_command_are_closed(talk: Talk, late: bool) -> None:
    fd = new_fd()
    call = talk.conversation.start(
        requests.memfd_create("m", MFD_CLOEXEC, None, "name")
    )
    talk.sent()
    if not late:
        talk.conversation.abandon(call)
    talk.returns(1, {}, (fd,))
    if late:
        assert call.result() == fd
        assert is_open(fd)
        talk.conversation.abandon(call)
    assert not is_open(fd)
    assert [said[:2] for said in talk.sent()] == [("closefd", {"fdname": "name"})]


def test_a_refused_command_has_nothing_to_be_given_back(talk: Talk) -> None:
    before = talk.conversation.start(requests.get_pfn("/a", 1))
    after = talk.conversation.start(requests.get_pfn("/a", 2))
    talk.sent()
    talk.conversation.abandon(before)
    talk.refuses(1, "GenericError", "EINVAL: no")
    talk.refuses(2, "GenericError", "EINVAL: no")
    talk.conversation.abandon(after)
    assert talk.sent() == []


def test_a_name_is_closed_after_its_references_were_given_back(talk: Talk) -> None:
    """Otherwise the put would find no file, and the reference would stay."""
    call = talk.conversation.start(requests.get_pfn("fd0", 7))
    talk.conversation.abandon(call)
    closed = talk.conversation.start(requests.close_fd("fd0"))
    talk.conversation.start(requests.close_fd("fd1"))
    assert [said[:2] for said in talk.sent()] == [
        ("get-pfn", {"file": "fd0", "offset": 7}),
        ("closefd", {"fdname": "fd1"}),
    ]
    talk.returns(1, FRAMES)
    said = talk.sent()
    assert [name for name, _, _ in said] == ["put-pfn", "closefd"]
    talk.returns(said[1][2], {})
    assert closed.done


@given(st.lists(st.sampled_from(["keep", "before", "after", "fail"]), max_size=20))
def test_each_reference_is_given_back_or_in_somebodys_hands(fates: list[str]) -> None:
    talk = Talk()
    calls = [
        talk.conversation.start(requests.get_pfn("/a", n)) for n in range(len(fates))
    ]
    talk.sent()
    for call, fate in zip(calls, fates, strict=True):
        if fate == "before":
            talk.conversation.abandon(call)
    for number, fate in enumerate(fates):
        if fate == "fail":
            talk.refuses(number + 1, "GenericError", "EINVAL: no")
        else:
            talk.returns(number + 1, messages.Frames(pfn=number, order=0))
    for call, fate in zip(calls, fates, strict=True):
        if fate == "after":
            talk.conversation.abandon(call)
    put = {arguments["pfn"] for _, arguments, _ in talk.sent()}
    kept = {
        call.result().pfn
        for call, fate in zip(calls, fates, strict=True)
        if fate == "keep"
    }
    given = {number for number, fate in enumerate(fates) if fate != "fail"}
    assert put | kept == given
    assert not put & kept
