"""A stream of JSON objects, cut in any way, with anything between them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inaccfs.control.limits import Limits
from inaccfs.control.stream import Asked, Refused, Stream, TooLong

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inaccfs.control.stream import Found
    from tests.unit.control_fakes import Control

LIMIT = Limits().message


def version(number: int) -> bytes:
    return b'{"execute":"query-version","id":%d}' % number


def fed(chunks: Iterable[bytes], limit: int = LIMIT) -> tuple[list[Found], Stream]:
    stream = Stream(limit)
    return [found for chunk in chunks for found in stream.feed(chunk)], stream


def answers_to(found: list[Found]) -> list[Any]:
    """The ids of commands, and the first words of errors."""
    return [
        json.loads(bytes(one.id) or b"null")
        if isinstance(one, Asked)
        else json.loads(one.reply)["error"]["desc"].partition(":")[0]
        if isinstance(one, Refused)
        else "too long"
        for one in found
    ]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (version(1) + version(2), [1, 2]),
        (version(1) + b" \r\n\t" + version(2) + b"\n\n", [1, 2]),
        (version(1) + b"\n" + version(2) + version(3) + b"\n", [1, 2, 3]),
        (b'{\n"execute"\n:\n"query-version",\n"id": 1\n}\n' + version(2), [1, 2]),
        (b'{"execute":"query-version","id":"}{\\"\\\\"}' + version(2), ['}{"\\', 2]),
        (b'{"execute":"query-version","id":{"a":[{"b":"]"}]}}', [{"a": [{"b": "]"}]}]),
        (b'{"execute":"query-version","id":"\xc3\xa4\\u00e4"}', ["ää"]),
        (b'{"execute":"query-version","id":-1.5e+3}' + version(2), [-1500.0, 2]),
        # Objects that are not commands are refused, and reading goes on with the next
        # byte.
        (b"{}" + version(2), ["EINVAL", 2]),
        (b'{"execute":1}' + version(2) + b"\n", ["EINVAL", 2]),
        (
            b'{"execute":"nope"}' + version(2),
            ["The command nope has not been found", 2],
        ),
        # Anything that is not an object is skipped up to the line end.
        (b"x " + version(1) + b"\n" + version(2), ["EINVAL", 2]),
        (b"[]\n" + version(2), ["EINVAL", 2]),
        (b"7\n" + version(2), ["EINVAL", 2]),
        (b"}}}}\n" + version(2), ["EINVAL", 2]),
        (version(1) + b"}\n" + version(2), [1, "EINVAL", 2]),
        (b'{"a" 1' + version(1) + b"\n" + version(2), ["EINVAL", 2]),
        (b'{"a": tru}\n' + version(2), ["EINVAL", 2]),
        (b'{"a": 01}\n' + version(2), ["EINVAL", 2]),
        (b'{"a": [1}\n' + version(2), ["EINVAL", 2]),
        (b'{"a": 1,}\n' + version(2), ["EINVAL", 2]),
        (b'{"a": "\\x"}\n' + version(2), ["EINVAL", 2]),
        (b'{"execute": "query-\n' + version(2), ["EINVAL", 2]),
        (b'{"execute":"query-version","id":"\xff"}\n' + version(2), ["EINVAL", 2]),
        (b'{"a":' + b"[" * 20_000 + b"\n" + version(2), ["EINVAL", 2]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_objects_are_found_and_the_rest_is_refused(
    data: bytes, answers: list[Any]
) -> None:
    for chunks in ([data], bytewise(data), [data[:7], data[7:-3], data[-3:]]):
        found, stream = fed(chunks)
        assert answers_to(found) == answers
        assert stream.begun == 0


@pytest.mark.parametrize(
    "data",
    [
        *(b"x", b"[", b"{]", b"{,", b"{1", b'{"a"}', b'{"a":}', b'{"a":,', b"{x"),
        *(b'{"a":1 2', b'{"a":nulL', b'{"a":"\n', b'{"a":"\xc0', b'{"a":"\\q', b'"{}"'),
        *(b'{"a":--', b'{"a":1.e', b'{"a":\x00', b"\xef\xbb\xbf{"),
    ],
)
def test_input_that_cannot_become_an_object_is_refused_at_once(data: bytes) -> None:
    """The error does not wait for a line end, which may never come."""
    assert answers_to(fed([data])[0]) == ["EINVAL"]
    assert answers_to(fed(bytewise(data))[0]) == ["EINVAL"]


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"{",
            b'{"',
            b'{"a\\',
            b'{"a\\u00',
            b'{"\xc3',
            b'{"\xf0\x90',
            b'{"a"',
            b'{"a":',
        ),
        *(b'{"a":-', b'{"a":1.', b'{"a":1e', b'{"a":tr', b'{"a":[', b'{"a":1', b" \n "),
    ],
)
def test_input_that_may_become_an_object_is_not_refused(data: bytes) -> None:
    assert fed([data])[0] == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
).filter(lambda value: value != float("inf") and value != float("-inf"))


@given(
    st.lists(json_values, min_size=1, max_size=3),
    st.lists(st.integers(1, 30)),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_any_object_is_whole_at_its_end_and_not_before(
    ids: list[Any], cuts: list[int], ascii_only: bool, indent: int | None
) -> None:
    try:
        data = b"".join(
            json.dumps(
                {"id": request_id, "execute": "query-version"},
                ensure_ascii=ascii_only,
                indent=indent,
            ).encode()
            for request_id in ids
        )
    except UnicodeEncodeError:
        return
    chunks = []
    rest = data
    for size in [*cuts, len(data)]:
        chunks.append(rest[:size])
        rest = rest[size:]
    found, stream = fed(chunks)
    if any("Infinity" in json.dumps(one) for one in ids):
        return
    assert len(found) == len(ids)
    assert stream.is_between


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_no_bytes_at_all_raise(chunks: list[bytes]) -> None:
    fed(chunks)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":"' + b"x" * LIMIT,
        b'{"execute":"query-version","id":"' + b"x" * LIMIT + b'"}\n',
        b"{" + b" " * LIMIT,
    ],
    ids=["half", "whole", "empty"],
)
def test_an_object_has_a_limit(data: bytes) -> None:
    for size in (len(data), 4096):
        chunks = [data[at : at + size] for at in range(0, len(data), size)]
        assert isinstance(fed(chunks)[0][0], TooLong)


def test_a_skipped_line_has_a_limit_too() -> None:
    assert answers_to(fed([b"x" * LIMIT, b"x" * 10])[0])[:2] == ["EINVAL", "too long"]
    assert answers_to(fed([b"x" * (LIMIT - 1), b"\n", version(1)])[0]) == ["EINVAL", 1]


def test_white_space_has_none() -> None:
    assert answers_to(fed([b"\n " * LIMIT] * 3 + [version(1)])[0]) == [1]


def test_the_place_where_an_object_begins_is_returned() -> None:
    first, second = b'{"execute":"query', b'-version"} {"execute":"quit"}'
    found, _ = fed([first, second])
    assert [one.begin for one in found] == [-len(first), 11]


# --- the same over the socket ---------------------------------------------------------


async def test_several_in_one_write_are_all_answered(control: Control) -> None:
    async with control.peer() as peer:
        await peer.send(version(1) + version(2))
        assert [(await peer.answer())["id"] for _ in range(2)] == [1, 2]
        await peer.send(b'{"execute":\n"query-version"\n,"id":3\n}')
        assert (await peer.answer())["id"] == 3


async def test_the_connection_goes_on_after_the_next_line_end(control: Control) -> None:
    async with control.peer() as peer:
        await peer.send(b"garbage")
        assert "EINVAL" in (await peer.answer())["error"]["desc"]
        await peer.send(version(1))
        await peer.send(b"\n" + version(2))
        assert (await peer.answer())["id"] == 2
