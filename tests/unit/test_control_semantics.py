"""The commands that only some semantics have, and what they refuse elsewhere."""

from __future__ import annotations

import errno
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.control.limits import Limits, Policy
from inaccfs.control.messages import COMMANDS, QueryStatus
from inaccfs.control.qmp import NO_ID
from inaccfs.control.request import NO_FD, Answer, Request
from inaccfs.semantics import (
    V7,
    V10,
    VERSIONS,
    Bind,
    GuestMemfd,
    Semantics,
    load,
)
from tests.unit.control_fakes import BASE, PAGE, controlling
from tests.unit.fakes import fallocate
from tests.unit.one_file import mine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from inaccfs.backing.root import Backing
    from tests.unit.control_fakes import Control


@asynccontextmanager
async def serving(
    scratch: Path, backing: Backing, rules: Semantics, policy: Policy | None = None
) -> AsyncIterator[Control]:
    """A control socket with these rules, and a file of eight pages, /guest."""
    with trio.fail_after(60):
        path = str(scratch / "control")
        async with controlling(path, backing, policy, rules) as control:
            control.make("guest", 8)
            yield control


# --- query-semantics ----------------------------------------------------------------


async def test_query_semantics_runs_no_code_of_a_user(
    scratch: Path, backing: Backing
) -> None:
    """The plans are computed before the mount is made, and never again."""
    path = scratch / "mine.py"
    path.write_text(
        "from inaccfs.semantics import V8\n"
        "class Mine(V8):\n"
        "    _asked = 0\n"
        "    def plan(self, *, punches):\n"
        "        self._asked += 1\n"
        "        if self._asked > 2:\n"
        "            raise SystemExit\n"
        "        return super().plan(punches=punches)\n"
    )
    rules = load.load(f"{path}:Mine")
    async with serving(scratch, backing, rules) as control, control.peer() as peer:
        for _ in range(2):
            assert (await peer.do("query-semantics"))["events"] == ["INVALIDATE"]


async def test_a_value_that_no_message_can_have_is_a_bug_of_one_command(
    scratch: Path, backing: Backing, caplog: pytest.LogCaptureFixture
) -> None:
    """A bad value in a return, and one in the text of an error."""
    rules = mine(source="\udcff")
    async with serving(scratch, backing, rules) as control, control.peer() as peer:
        control.daemon.error = OSError(errno.EINVAL, "\udcff")
        for command in ("query-semantics", "query-status"):
            assert (await peer.do(command)).startswith("EIO: a bug")
            assert f"bug in the command {command}" in caplog.text
        assert "qemu" in await peer.do("query-version")


async def test_the_fd_with_a_value_that_no_message_can_have_is_closed(
    control: Control,
) -> None:
    fd = os.open("/", os.O_PATH)
    async with control.peer() as peer:
        (served,) = control.server.peers
        request = Request(QueryStatus(), NO_ID, NO_FD)
        served._finished(request, None, Answer("\udcff", fd=fd))
        assert "EIO: a bug" in (await peer.answer())["error"]["desc"]
        assert peer.fds == []
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


# --- commands of each version -----------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
async def test_each_has_the_commands_that_it_lists_and_refuses_the_others(
    scratch: Path, backing: Backing, version: type[Semantics]
) -> None:
    async with (
        serving(scratch, backing, version()) as control,
        control.peer() as peer,
    ):
        reply = await peer.do("query-semantics")
        assert reply["name"] == version.name
        by_range = version.scope == "range"
        if by_range:
            made = await peer.do("bind", file="/guest", start=0, end=8)
        else:
            made = await peer.do("register-notifier", file="/guest")
        number = made["notifier"]
        page = {"file": "/guest", "offset": 0, "count": 1}
        arguments = {
            "register-notifier": {"file": "/guest"},
            "unregister-notifier": {"notifier": number},
            "bind": {"file": "/guest", "start": 0, "end": 8},
            "unbind": {"notifier": number},
            "commit-bind": {"notifier": number},
            "memory-failure": {"file": "/guest", "offset": 0},
            "put-pfn": {"file": "/guest", "pfn": 1},
            "set-memory-attributes": {**page, "private": True},
            "populate": page,
            "freeze": {"file": "/guest"},
            "unfreeze": {"file": "/guest"},
            "migrate": page,
            "read-shared": page,
            "write-shared": {"file": "/guest", "offset": 0, "data": "aGVsbG8="},
            "pin-pages": page,
            "unpin-pages": {"file": "/guest", "pfn": 1},
        }
        assert arguments.keys() == {
            name for name, kind in COMMANDS.items() if kind.exists is not None
        }
        # What these refuse are a notifier and pages that the others cannot make.
        others = {"commit-bind": "ENOENT: ", "unpin-pages": "EINVAL: "}
        others |= dict.fromkeys(
            ("read-shared", "write-shared", "pin-pages"), "ENODEV: "
        )
        for command in arguments:
            if command in reply["commands"]:
                continue
            refusal = await peer.do(command, **arguments[command])
            expected = others.get(command, "EOPNOTSUPP: ")
            assert refusal.startswith(expected), (command, refusal)
        # The refused commands have had no effect.
        (left,) = await peer.do("query-notifiers")
        assert left["notifier"] == number
        last = "unbind" if by_range else "unregister-notifier"
        assert last in reply["commands"]
        assert await peer.do(last, notifier=number) == {}
        assert await peer.do("query-notifiers") == []


# --- bind -------------------------------------------------------------------------


async def test_a_range_that_cannot_be_bound_is_refused(
    scratch: Path, backing: Backing
) -> None:
    async with serving(scratch, backing, Bind()) as control, control.peer() as peer:
        for start, end in ((4, 4), (5, 4), (8, 1)):
            refusal = await peer.do("bind", file="/guest", start=start, end=end)
            assert refusal.startswith(f"EINVAL: no pages from {start} to {end}")
        refusal = await peer.do("bind", file="/guest", start=0, end=4, exclusive=False)
        assert refusal == "EINVAL: ranges are exclusive in these semantics"
        assert "ENOENT" in await peer.do("bind", file="/nothing", start=0, end=4)
        assert (await peer.do("query-stats"))["notifiers"] == 0

        made = await peer.do("bind", file="/guest", start=0, end=4)
        refusal = await peer.do("bind", file="/guest", start=3, end=9)
        assert refusal == "EINVAL: pages 3 to 4 are bound already: unbind them"
        # The range may lie past the end: the size may be set later.
        await peer.do("bind", file="/guest", start=4, end=1 << 51)
        assert await peer.do("unbind", notifier=made["notifier"]) == {}
        assert "ENOENT" in await peer.do("unbind", notifier=made["notifier"])
        await peer.do("bind", file="/guest", start=1, end=3)
        assert [
            (one["start"], one["end"]) for one in await peer.do("query-notifiers")
        ] == [(4, 1 << 51), (1, 3)]


async def test_a_guest_memfd_is_bound_inside_its_size(
    scratch: Path, backing: Backing
) -> None:
    """EINVAL of kvm_gmem_bind()."""
    async with (
        serving(scratch, backing, GuestMemfd()) as control,
        control.peer() as peer,
    ):
        for start, end in ((0, 9), (8, 9), (100, 101)):
            refusal = await peer.do("bind", file="/guest", start=start, end=end)
            assert refusal.startswith("EINVAL: the range ends past the file")
        assert (await peer.do("query-stats"))["notifiers"] == 0
        assert "notifier" in await peer.do("bind", file="/guest", start=0, end=8)


async def test_ranges_that_may_overlap_do(scratch: Path, backing: Backing) -> None:
    """QEMU's SMRAM is an alias slot. A binding is exclusive only on request."""
    rules = mine(Bind, exclusive=False)
    async with serving(scratch, backing, rules) as control, control.peer() as peer:
        for start, end in ((0, 8), (2, 4), (2, 4)):
            made = await peer.do("bind", file="/guest", start=start, end=end)
            assert "notifier" in made
        refusal = await peer.do("bind", file="/guest", start=0, end=1, exclusive=True)
        assert refusal.startswith("EINVAL: pages 0 to 1 are bound already")
        await peer.do("bind", file="/guest", start=8, end=9, exclusive=True)
        refusal = await peer.do("bind", file="/guest", start=8, end=9)
        assert refusal.startswith("EINVAL: pages 8 to 9 are bound already")


async def test_bindings_go_with_their_peer(scratch: Path, backing: Backing) -> None:
    async with serving(scratch, backing, Bind()) as control:
        for _ in range(3):
            async with control.peer() as peer:
                await peer.do("bind", file="/guest", start=0, end=8)
            await control.peers_down_to(0)


# --- pages ------------------------------------------------------------------------


async def test_an_unbound_page_has_the_errno_of_the_version(
    scratch: Path, backing: Backing
) -> None:
    for number, (rules, name) in enumerate(((Bind(), "EINVAL"), (GuestMemfd(), "EIO"))):
        directory = scratch / str(number)
        directory.mkdir()
        async with (
            serving(directory, backing, rules) as control,
            control.peer() as peer,
        ):
            refusal = await peer.do("get-pfn", file="/guest", offset=3)
            assert refusal.startswith(f"{name}: nobody is bound to all of the pages 3")
            # Any peer may get it: only the page is checked.
            async with control.peer() as other:
                await other.do("bind", file="/guest", start=3, end=4)
                assert await peer.do("get-pfn", file="/guest", offset=3) == {
                    "pfn": BASE + 3,
                    "order": 0,
                }
        control.namespace.unlink(control.namespace.inodes.root, b"guest")


async def test_poison_outlives_the_command_that_reports_it(
    scratch: Path, backing: Backing
) -> None:
    """It does so even if no process has the file open."""
    async with serving(scratch, backing, V10()) as control, control.peer() as peer:
        refusal = await peer.do("memory-failure", file="/guest", offset=3)
        assert refusal == "ENXIO: page 3 is a hole: it has no memory that could fail"
        node = control.namespace.find(b"/guest")
        with control.namespace.opens.hold(node) as file:
            os.posix_fallocate(file.fd, 3 * PAGE, PAGE)
        assert await peer.do("memory-failure", file="/guest", offset=3) == {}
        info = await peer.do("query-file", file="/guest")
        assert (info["poisoned"], info["fetched"]) == (1, 0)
        assert (await peer.do("query-stats"))["pages_poisoned"] == 1
        refusal = await peer.do("get-pfn", file="/guest", offset=0, count=8)
        assert refusal == "EHWPOISON: page 3 is poisoned: punch it"
        assert "pfn" in await peer.do("get-pfn", file="/guest", offset=4)
        assert "EINVAL" in await peer.do("memory-failure", file="/guest", offset=8)
        # Deleting the file ends it.
        control.namespace.unlink(control.namespace.inodes.root, b"guest")
        control.make("guest", 8)
        assert "pfn" in await peer.do("get-pfn", file="/guest", offset=3)


async def test_without_references_nothing_is_counted(
    scratch: Path, backing: Backing
) -> None:
    rules, policy = mine(references="none"), Policy(Limits(pages=8))
    async with (
        serving(scratch, backing, rules, policy) as control,
        control.peer() as peer,
    ):
        for _ in range(3):
            await peer.do("get-pfn", file="/guest", offset=0, count=8)
        stats = await peer.do("query-stats")
        assert (stats["references"], stats["fetched"]) == (0, 8)
        refusal = await peer.do("put-pfn", file="/guest", pfn=BASE)
        assert refusal.startswith("EOPNOTSUPP: these semantics give no references")


async def test_a_peer_that_keeps_pages_locked_is_disconnected(
    scratch: Path, backing: Backing, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(ack_seconds=0.05)
    async with (
        serving(scratch, backing, V7(), policy) as control,
        control.peer() as peer,
    ):
        await peer.do("get-pfn", file="/guest", offset=3)
        node = control.namespace.lookup(control.namespace.inodes.root, b"guest").nodeid
        file = control.namespace.inodes[node].file
        assert file is not None
        await fallocate(file, 3, 0, 8 * PAGE, trio.Event())
        await peer.closed()
    assert "keeps pages locked for more than 0.05 s: disconnected" in caplog.text


@pytest.mark.parametrize("how", ["hangs up", "breaks"])
async def test_a_peer_that_reports_poison_may_go_in_the_middle(
    scratch: Path, backing: Backing, how: str
) -> None:
    """The others have got a start event, and still get the end event."""
    async with (
        serving(scratch, backing, GuestMemfd()) as control,
        control.peer() as other,
        control.peer() as teller,
    ):
        await other.do("bind", file="/guest", start=0, end=4)
        await teller.do("bind", file="/guest", start=4, end=8)
        await teller.do("get-pfn", file="/guest", offset=3)
        await teller.send(teller.line("memory-failure", file="/guest", offset=3) + "\n")
        start = await other.event()
        assert start["event"] == "INVALIDATE_START"
        if how == "hangs up":
            await teller.stream.aclose()
        else:
            list(control.server.peers)[-1].disconnect("a test")
        await trio.testing.wait_all_tasks_blocked()
        await other.do("invalidate-done", notifier=start["notifier"], sequence=1)
        end = await other.event()
        assert (end["event"], end["start"], end["end"]) == ("INVALIDATE_END", 3, 4)
        await other.do("invalidate-done", notifier=end["notifier"], sequence=2)
        await control.peers_down_to(1)


async def test_a_peer_that_its_own_command_waits_for_may_go(
    scratch: Path, backing: Backing, caplog: pytest.LogCaptureFixture
) -> None:
    """The daemon no longer waits for its answer, and does not log a missing answer."""
    async with serving(scratch, backing, GuestMemfd()) as control:
        for page, how in enumerate(("hangs up", "breaks")):
            async with control.peer() as teller:
                await teller.do("bind", file="/guest", start=0, end=8)
                await teller.do("get-pfn", file="/guest", offset=page)
                line = teller.line("memory-failure", file="/guest", offset=page)
                await teller.send(line + "\n")
                assert (await teller.event())["event"] == "INVALIDATE_START"
                if how == "breaks":
                    (served,) = control.server.peers
                    served.disconnect("a test")
            await control.peers_down_to(0)
    assert "no answer" not in caplog.text
