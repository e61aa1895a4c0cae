"""The control socket, over a real AF_UNIX socket: QMP, and no peer ends the server."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from inaccfs import __version__
from inaccfs.control import messages, qmp, readers, server
from inaccfs.control.context import Actions
from inaccfs.control.limits import Limits
from inaccfs.errors import MountError
from inaccfs.semantics import V8
from inaccfs.shim.superblock import Superblock
from inaccfs.status import Status
from tests.unit.control_fakes import PAGE, Control, DirectHelper, Peer
from tests.unit.daemon_fakes import STATUS, Daemon, NoFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# --- the conversation -------------------------------------------------------------


async def test_the_greeting_has_the_version(control: Control) -> None:
    async with await trio.open_unix_socket(control.path) as stream:
        greeting = await Peer(stream).receive()
    version = greeting["QMP"]["version"]["qemu"]
    output = ".".join(str(version[part]) for part in ("major", "minor", "micro"))
    assert __version__.startswith(output)
    assert greeting["QMP"]["capabilities"] == []


async def test_nothing_goes_before_the_negotiation(control: Control) -> None:
    async with control.peer(negotiate=False) as peer:
        answer = await peer.ask('{"execute": "quit", "id": 1}')
        assert answer["error"]["class"] == "CommandNotFound"
        assert "qmp_capabilities" in answer["error"]["desc"]
        assert answer["id"] == 1
        assert control.daemon.quits == 0
        assert await peer.ask('{"execute": "qmp_capabilities"}') == {"return": {}}
        assert await peer.ask('{"execute": "quit"}') == {"return": {}}
    assert control.daemon.quits == 1


async def test_what_is_sent_with_the_negotiation_comes_after_it(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a task executes qmp_capabilities, because the loop is late."""
    monkeypatch.setattr(readers, "_TURN_SECONDS", -1.0)
    async with control.peer(negotiate=False) as peer:
        await peer.send(
            '{"execute": "qmp_capabilities", "id": 1}\n'
            '{"execute": "invalidate-done", "id": 2,'
            ' "arguments": {"notifier": 1, "sequence": 1}}\n'
            '{"execute": "quit", "id": 3}\n'
        )
        answers = [await peer.answer() for _ in range(3)]
        assert [answer["id"] for answer in answers] == [1, 2, 3]
        assert "ENOENT" in answers[1]["error"]["desc"]
        assert answers[0]["return"] == answers[2]["return"] == {}
    assert control.daemon.quits == 1


async def test_each_peer_negotiates_for_itself(control: Control) -> None:
    async with control.peer(), control.peer(negotiate=False) as second:
        assert "error" in await second.ask('{"execute": "query-version"}')


async def test_query_commands_names_them_all(control: Control) -> None:
    async with control.peer() as peer:
        answer = await peer.ask('{"execute": "query-commands"}')
    assert {command["name"] for command in answer["return"]} == set(messages.COMMANDS)


async def test_query_status_is_the_status(control: Control) -> None:
    async with control.peer() as peer:
        answer = await peer.ask('{"execute": "query-status"}')
    assert msgspec.convert(answer["return"], Status) == STATUS


@pytest.mark.parametrize(
    ("line", "kind", "desc"),
    [
        pytest.param('{"execute": "nope"}', "CommandNotFound", "nope", id="unknown"),
        pytest.param("{]", "GenericError", "EINVAL", id="no end of an object"),
        pytest.param("[]", "GenericError", "EINVAL", id="no object"),
        pytest.param("{}", "GenericError", "execute", id="no command"),
        pytest.param('{"execute": 1}', "GenericError", "execute", id="no name"),
        pytest.param(
            '{"execute": "quit", "x": 1}', "GenericError", "x", id="unknown member"
        ),
        pytest.param(
            '{"execute": "quit", "arguments": {"now": true}}',
            "GenericError",
            "now",
            id="unknown argument",
        ),
        pytest.param(
            '{"execute": "quit", "arguments": 5}', "GenericError", "EINVAL", id="int"
        ),
        pytest.param(
            '{"execute": "quit", "id": ' + "[" * 20_000 + "]" * 20_000 + "}",
            "GenericError",
            "EINVAL",
            id="deep",
        ),
    ],
)
async def test_a_bad_message_is_answered_and_the_peer_stays(
    control: Control, line: str, kind: str, desc: str
) -> None:
    async with control.peer() as peer:
        answer = await peer.ask(line)
        assert answer["error"]["class"] == kind
        assert desc in answer["error"]["desc"]
        assert "return" in await peer.ask('{"execute": "query-version"}')
    assert control.daemon.quits == 0


async def test_bytes_that_are_no_text_are_a_bad_message(control: Control) -> None:
    async with control.peer() as peer:
        assert "error" in await peer.ask(b'{"execute": "\xff\xfe"}')
        bad = b'{"execute": "query-version", "id": "\xff"}'
        assert "error" in await peer.ask(bad)
        assert "error" in await peer.ask(bytes(range(11, 256)))
    await control.still_serves()


@pytest.mark.parametrize(
    "request_id", ['"a"', "7", "1.5", "null", "true", '{"x": [1]}', "[]", str(1 << 80)]
)
async def test_the_id_comes_back_with_result_and_error(
    control: Control, request_id: str
) -> None:
    async with control.peer() as peer:
        for command in ("query-version", "nope"):
            line = f'{{"execute": "{command}", "id": {request_id}}}'
            assert (await peer.ask(line))["id"] == json.loads(request_id)
        answer = await peer.ask('{"execute": "query-version"}')
        assert "id" not in answer


async def test_a_bad_argument_does_not_cost_the_id(control: Control) -> None:
    async with control.peer() as peer:
        line = '{"execute": "quit", "arguments": {"now": 1}, "id": "mine"}'
        assert (await peer.ask(line))["id"] == "mine"


async def test_quit_is_answered_before_the_daemon_ends(scratch: Path) -> None:
    path = str(scratch / "control")
    with trio.fail_after(60), server.listen(path) as listener:
        async with trio.open_nursery() as nursery:
            # As when the daemon ends: all tasks in its nursery are cancelled.
            actions = Actions(Daemon().status, nursery.cancel_scope.cancel)
            made = server.Server(
                listener,
                actions,
                NoFiles(),
                Superblock(V8(), PAGE),
                receiver=DirectHelper(),
            )
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            client.sendall(
                b'{"execute": "qmp_capabilities"}\n{"execute": "quit", "id": "last"}\n'
            )
            nursery.start_soon(made.run)
        assert nursery.cancel_scope.cancelled_caught
    with client, client.makefile("rb") as lines:
        _, _, reply = lines
    assert json.loads(reply) == {"return": {}, "id": "last"}


# --- how messages are cut ---------------------------------------------------------

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
json_objects = st.dictionaries(
    st.text(),
    st.none() | st.integers(0, 9) | st.text() | st.just({"}": "{"}),
    max_size=3,
).map(json.dumps)


async def test_several_in_one_packet_and_one_in_several(control: Control) -> None:
    line = '{"execute": "query-version", "id": 1}\r\n'
    async with control.peer() as peer:
        await peer.send(line + "\n" + line + line[:10])
        assert [(await peer.receive())["id"] for _ in range(2)] == [1, 1]
        await peer.send(line[10:])
        assert (await peer.receive())["id"] == 1


@pytest.mark.parametrize("command", ["query-version", "nope"])
async def test_a_whole_object_needs_no_line_end(control: Control, command: str) -> None:
    async with control.peer() as peer:
        await peer.send(f'{{"execute": "{command}", "id": {{"x": 5}}')
        await peer.send("}")
        assert (await peer.receive())["id"] == {"x": 5}


async def test_a_message_that_is_too_long_gets_an_error_and_ends_the_connection(
    control: Control,
) -> None:
    async with control.peer() as peer:
        await peer.send('{"execute": "' + "x" * Limits().message)
        assert "EMSGSIZE" in (await peer.receive())["error"]["desc"]
        # Closed, or reset because of what the server has not read.
        with suppress(trio.BrokenResourceError):
            assert await peer.stream.receive_some() == b""
    await control.still_serves()


# --- peers that misbehave ---------------------------------------------------------


async def test_a_peer_that_hangs_up_in_the_middle_disturbs_no_other(
    control: Control,
) -> None:
    async with control.peer() as witness:
        async with control.peer() as peer:
            await peer.send('{"execute": "query-')
        async with control.peer() as peer:
            # Nobody reads the replies.
            await peer.send('{"execute": "query-commands"}\n' * 2000)
        assert "return" in await witness.ask('{"execute": "query-version"}')


async def test_a_peer_that_does_not_read_delays_no_other(control: Control) -> None:
    async with control.peer() as mute:
        with trio.move_on_after(0.05) as scope:
            while True:
                await mute.send('{"execute": "query-commands"}\n' * 500)
        assert scope.cancelled_caught
        await control.still_serves()


@pytest.mark.parametrize(
    ("error", "desc"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "EACCES: "),
        (OSError("no errno"), "EIO"),
        (RuntimeError("a bug"), "EIO"),
    ],
    ids=repr,
)
async def test_a_command_that_fails_is_answered(
    control: Control, error: Exception, desc: str
) -> None:
    control.daemon.error = error
    async with control.peer() as peer:
        answer = await peer.ask('{"execute": "query-status", "id": 3}')
        assert answer["error"]["class"] == "GenericError"
        assert answer["error"]["desc"].startswith(desc)
        assert answer["id"] == 3
    await control.still_serves()


@given(st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")))
def test_no_bytes_at_all_escape_decoding(line: bytes) -> None:
    try:
        qmp.decode_request(line)
    except qmp.BadRequestError as exc:
        reply = exc.reply
    else:
        return
    kind = json.loads(reply)["error"]["class"]
    assert kind in ("GenericError", "CommandNotFound")


@settings(max_examples=50)
@given(json_values)
def test_any_id_can_be_answered(request_id: object) -> None:
    line = json.dumps({"execute": "query-version", "id": request_id}).encode()
    try:
        _, found = qmp.decode_request(line)
    except qmp.BadRequestError as exc:
        reply = exc.reply
    else:
        reply = qmp.encode_return({}, found)
    assert reply.endswith(b"\n")
    json.loads(reply)


def test_an_event_can_reach_to_the_end_of_all_offsets() -> None:
    """fallocate(2) may name the last byte of a loff_t; ends are exclusive."""
    event = messages.Invalidate(notifier=1, start=0, end=2**51, sequence=1)
    assert qmp.decode_incoming(qmp.encode_event(event)) == event


# --- the socket -------------------------------------------------------------------


def test_the_socket_is_its_owners_alone(scratch: Path) -> None:
    """This is so with any umask, which is restored afterwards."""
    path = scratch / "control"
    before = os.umask(0)
    try:
        with server.listen(str(path)):
            assert path.stat().st_mode == stat.S_IFSOCK | 0o600
        assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_a_socket_that_a_dead_daemon_left_is_replaced(scratch: Path) -> None:
    path = str(scratch / "control")
    server.listen(path).close()
    assert os.path.exists(path)
    with server.listen(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_live_daemons_socket_is_refused_and_left_alone(scratch: Path) -> None:
    path = str(scratch / "control")
    with server.listen(path) as listener, socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(MountError, match="another daemon"):
            server.listen(path)
        client.connect(path)
        # The connection that checked for a daemon, and this one.
        listener.accept()[0].close()


def _file(path: Path) -> None:
    path.write_text("precious")


def _directory(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")
    (path.parent / "elsewhere").write_text("precious")


def test_a_socket_of_another_kind_is_refused_and_left_alone(scratch: Path) -> None:
    path = str(scratch / "control")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(MountError, match="--control"):
            server.listen(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.connect(path)
            client.send(b"still there")
        assert other.recv(20) == b"still there"


@pytest.mark.parametrize("make", [_file, _directory, _link])
def test_a_file_at_the_path_of_the_socket_is_refused_and_kept(
    scratch: Path, make: Callable[[Path], None]
) -> None:
    path = scratch / "control"
    make(path)
    before = path.lstat()
    with pytest.raises(MountError, match="--control"):
        server.listen(str(path))
    assert path.lstat() == before
    if path.is_file():
        assert path.read_text() == "precious"


def test_a_place_that_does_not_exist_is_reported(scratch: Path) -> None:
    with pytest.raises(MountError, match="No such file"):
        server.listen(str(scratch / "nowhere" / "control"))
