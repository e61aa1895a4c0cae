"""Limits of peers of the control socket, and who may be one."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from inaccfs.control.limits import Limits, Policy
from tests.unit.control_fakes import BASE, Control, Peer, controlling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from inaccfs.backing.root import Backing


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that other users may search, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="inaccfs-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


# --- limits ---------------------------------------------------------------------------


@asynccontextmanager
async def limited(
    scratch: Path, backing: Backing, **limits: int
) -> AsyncIterator[tuple[Control, Peer]]:
    policy = Policy(Limits(**limits))
    with trio.fail_after(60):
        async with (
            controlling(str(scratch / "control"), backing, policy) as control,
            control.peer() as peer,
        ):
            yield control, peer


async def test_fdnames_are_limited(scratch: Path, backing: Backing) -> None:
    async with limited(scratch, backing, fdnames=2) as (control, peer):
        fd = control.backing_fd(control.make("guest"))
        for name in ("a", "b", "b"):
            assert await peer.do("getfd", fd, fdname=name) == {}
        for command in ("getfd", "memfd-create"):
            more = {"name": "x"} if command == "memfd-create" else {}
            said = await peer.do(command, fd, fdname="c", **more)
            assert said.startswith("EMFILE: 2 fdnames are taken (--limit fdnames=N)")
        os.close(fd)


async def test_notifiers_are_limited(scratch: Path, backing: Backing) -> None:
    async with limited(scratch, backing, notifiers=1) as (control, peer):
        control.make("guest")
        first = await peer.do("register-notifier", file="/guest")
        said = await peer.do("register-notifier", file="/guest")
        assert "EDQUOT: 1 notifiers" in said
        assert "--limit notifiers=N" in said
        await peer.do("unregister-notifier", **first)
        assert "notifier" in await peer.do("register-notifier", file="/guest")


async def test_referenced_pages_are_limited(scratch: Path, backing: Backing) -> None:
    async with limited(scratch, backing, pages=4) as (control, peer):
        control.make("guest", 8)
        await peer.do("get-pfn", file="/guest", offset=0, count=3)
        said = await peer.do("get-pfn", file="/guest", offset=0, count=2)
        assert said.startswith("EDQUOT: 3 pages are got or pinned and 2 more")
        assert "--limit pages=N" in said
        await peer.do("put-pfn", file="/guest", pfn=BASE)
        assert "extents" in await peer.do("get-pfn", file="/guest", offset=0, count=2)


async def test_messages_are_limited(scratch: Path, backing: Backing) -> None:
    async with limited(scratch, backing, message=100) as (control, peer):
        await peer.send("{" + " " * 200)
        said = (await peer.answer())["error"]["desc"]
        assert said == "EMSGSIZE: a message can have 100 bytes (--limit message=N)"
        await peer.closed()
        await control.still_serves()


async def test_peers_are_limited(scratch: Path, backing: Backing) -> None:
    async with limited(scratch, backing, peers=1) as (control, peer):
        async with await trio.open_unix_socket(control.path) as stream:
            refusal = await Peer(stream).receive()
            assert refusal["error"]["desc"].startswith("EMFILE: 1 peers")
            await Peer(stream).closed()
        assert "return" in await peer.ask('{"execute": "query-version"}')


@pytest.mark.parametrize(
    "text", ["peer=5", "peers", "peers=", "peers=0", "peers=-1", "peers=1.5", "=5", ""]
)
def test_a_wrong_limit_is_reported(text: str) -> None:
    from inaccfs.errors import OptionError

    with pytest.raises(OptionError, match="limit"):
        Limits().changed(text)


# --- permissions ----------------------------------------------------------------------


async def test_others_are_closed_on_at_once(scratch: Path, backing: Backing) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    async with limited(scratch, backing) as (control, peer):
        os.chmod(control.path, 0o666)
        assert await trio.to_thread.run_sync(_read_as, 12345, control.path) == b""
        assert "return" in await peer.ask('{"execute": "query-version"}')


async def test_an_allowed_user_shows_fds_and_names_no_paths(
    scratch: Path, backing: Backing
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    policy = Policy(allowed_uids=frozenset({12345}))
    with trio.fail_after(60):
        async with controlling(str(scratch / "control"), backing, policy) as control:
            os.chmod(control.path, 0o666)
            node = control.make("guest", 1)
            fd = control.backing_fd(node)
            said = await trio.to_thread.run_sync(
                _talk_as,
                12345,
                control.path,
                [
                    ('{"execute": "qmp_capabilities"}', -1),
                    ('{"execute":"query-file","arguments":{"file":"/guest"}}', -1),
                    ('{"execute":"getfd","arguments":{"fdname":"a"}}', fd),
                    ('{"execute":"query-file","arguments":{"file":"a"}}', -1),
                    ('{"execute":"get-memory","arguments":{"file":"a"}}', -1),
                    ('{"execute":"quit"}', -1),
                ],
            )
            os.close(fd)
            assert "EPERM: paths are for root" in said[2]
            assert said[3] == '{"return":{}}'
            assert "/guest" in said[4]
            assert "EPERM" in said[5]
            assert "EPERM" in said[6]
            assert control.daemon.quits == 0


def _as_user(uid: int, work: object) -> bytes:
    """What *work* writes in a child that is user *uid*."""
    assert callable(work)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(write, work())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


def _read_as(uid: int, path: str) -> bytes:
    def work() -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            return client.recv(100)

    return _as_user(uid, work)


def _talk_as(uid: int, path: str, lines: list[tuple[str, int]]) -> list[str]:
    def work() -> bytes:
        with ExitStack() as stack:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
            said = stack.enter_context(client.makefile("rb"))
            found = said.readline()
            for line, fd in lines:
                data = line.encode() + b"\n"
                if fd < 0:
                    client.sendall(data)
                else:
                    socket.send_fds(client, [data], [fd])
                found += said.readline()
        return found

    return _as_user(uid, work).decode().splitlines()
