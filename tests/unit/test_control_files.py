"""Files, notifiers and page frames over the control socket, without a mount."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import tempfile
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from inaccfs.control.limits import Limits, Policy
from inaccfs.fuse.files import OpenFile
from inaccfs.fuse.nodes import let_go
from inaccfs.shim.slices import Slices
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.unit import fakes
from tests.unit.control_fakes import BASE, PAGE, Control, Peer, controlling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from inaccfs.backing.root import Backing
    from inaccfs.fuse.nodes import Node
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.notice import Notice


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that other users may search, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="inaccfs-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


async def fallocate(control: Control, node: Node, mode: int, *pages: int) -> None:
    """A fallocate(2) as the channel does it; *pages* is (first, count)."""
    offset, length = (page * PAGE for page in pages)
    with control.namespace.opens.hold(node) as file:
        await fakes.fallocate(file, mode, offset, length, trio.Event())


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def closed_again(before: int) -> None:
    """Wait until no more fds are open than *before*: threads close the fds of peers."""
    while open_fds() > before:  # noqa: ASYNC110 - the threads notify nothing
        await trio.sleep(0.001)


# --- which file ---------------------------------------------------------------------


async def test_an_fd_is_the_file_that_it_has_open(control: Control) -> None:
    node = control.make("guest", 4)
    control.namespace.opens.release(node)
    control.namespace.opens.open(node, os.O_RDWR)
    fd = control.backing_fd(node)
    async with control.peer() as peer:
        assert await peer.do("getfd", fd, fdname="mine") == {}
        info = await peer.do("query-file", file="mine")
        assert (info["name"], info["ino"]) == ("/guest", node.ino)
        assert (info["size"], info["page_size"]) == (4 * PAGE, PAGE)
        assert info["opens"] == 2
        assert await peer.do("closefd", fdname="mine") == {}
        assert node.opens == 1
        assert "ENOENT" in await peer.do("closefd", fdname="mine")
    os.close(fd)


class Listener:
    """A notifier that answers at once."""

    who = number = 0

    def __init__(self, file: InaccessibleFile) -> None:
        self.file = file
        self.events: list[tuple[int, int]] = []

    def tell(self, notice: Notice, sequence: int | None) -> None:
        self.events.append((notice.start, notice.end))
        assert sequence is not None
        self.file.notifiers.answer(self, sequence)

    def evict(self) -> None:
        raise AssertionError


async def test_the_events_of_a_last_close_do_not_need_the_fd(
    control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    """The last weak open may be closed before the task runs that sends them."""
    node = control.make("guest", 4)
    opens = control.namespace.opens
    weak = OpenFile(opens, node)
    weak.weaken()
    listener = Listener(weak.file)
    await weak.file.notifiers.register(listener)
    control.namespace.unlink(control.namespace.inodes.root, b"guest")
    tasks: list[Callable[[], Awaitable[None]]] = []
    opens.start = tasks.append
    opens.release(node)
    weak.close()
    control.namespace.inodes.forget(node.ino, 1)
    with fakes.refused(errno.EBADF):
        os.fstat(weak.file.fd)
    (task,) = tasks
    await task()
    assert caplog.text == ""
    assert listener.events == [(0, 4)]


async def test_the_server_keeps_no_fd_of_a_peer(control: Control) -> None:
    node = control.make("guest")
    fd = control.backing_fd(node)
    pipe = os.pipe()
    async with control.peer() as peer:
        before = open_fds()
        assert await peer.do("getfd", fd, fdname="a") == {}
        # The second fd is closed.
        assert await peer.do("getfd", fd, fd, *pipe, fdname="a") == {}
        assert "EINVAL" in await peer.do("getfd", pipe[0], fdname="b")
        # It is closed, too, where no command takes an fd.
        await peer.do("query-version", fd, pipe[0])
        assert "error" in await peer.ask('{"execute": "no such"}', fd)
        assert "error" in await peer.ask("{]", pipe[1])
        await closed_again(before)
    for one in (fd, *pipe):
        os.close(one)


async def test_a_missing_fd_is_reported(control: Control) -> None:
    async with control.peer() as peer:
        assert "EBADF: no fd came" in await peer.do("getfd", fdname="a")


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH], ids=["reading", "a path"])
async def test_an_fd_must_be_open_for_writing(control: Control, flags: int) -> None:
    node = control.make("guest")
    fd = control.backing_fd(node, flags)
    async with control.peer() as peer:
        assert "EBADF: the fd is not open for writing" in await peer.do(
            "getfd", fd, fdname="a"
        )
    os.close(fd)


async def test_fds_of_a_directory_and_of_an_unopened_file_are_refused(
    control: Control, backing: Backing
) -> None:
    node = control.make("guest")
    fd = control.backing_fd(node)
    control.namespace.opens.release(node)
    directory = os.open(".", os.O_RDONLY, dir_fd=backing.root)
    async with control.peer() as peer:
        for one in (fd, directory):
            assert "EINVAL" in await peer.do("getfd", one, fdname="a")
            os.close(one)


async def test_a_path_begins_at_the_root(control: Control) -> None:
    namespace = control.namespace
    namespace.mkdir(namespace.inodes.root, b"dir", 0o700, 0, 0)
    namespace.symlink(namespace.inodes.root, b"link", b"guest", 0, 0)
    control.make("guest", 1)
    async with control.peer() as peer:
        info = await peer.do("query-file", file="//./guest")
        assert info["name"] == "/guest"
        for path, error in {
            "/nowhere": "ENOENT: /nowhere: No such file",
            "/guest/x": "ENOTDIR",
            "/dir": "EINVAL: /dir: this is no regular file",
            "/": "EINVAL",
            "/link": "ELOOP",
            "/dir/../guest": "EINVAL",
            "/a\0b": "EINVAL",
            "nothing": "ENOENT: no fdname 'nothing'",
        }.items():
            assert error in await peer.do("query-file", file=path), path
    # Files that were only looked up are not remembered.
    known = {node.name for node in namespace.inodes.nodes.values() if not node.lookups}
    assert known == {b""}


async def test_a_name_that_is_taken_gets_the_new_file(control: Control) -> None:
    first, second = control.make("first"), control.make("second")
    fds = [control.backing_fd(node) for node in (first, second)]
    async with control.peer() as peer:
        for fd in fds:
            assert await peer.do("getfd", fd, fdname="a") == {}
        assert (await peer.do("query-file", file="a"))["name"] == "/second"
        assert first.opens == 1
    for fd in fds:
        os.close(fd)


async def test_an_fd_goes_with_the_message_that_it_was_sent_with(
    control: Control,
) -> None:
    """This is so even if several messages are read at once, or one in pieces."""
    node = control.make("guest")
    fd = control.backing_fd(node)
    async with control.peer() as peer:
        getfd = peer.line("getfd", fdname="a")
        await peer.send('{"execute": "query-version"}\n')
        await peer.send(getfd + "\n", fd)
        assert "qemu" in (await peer.answer())["return"]
        assert (await peer.answer()) == {"return": {}}
        await peer.send(getfd[:9], fd)
        await peer.send(getfd[9:] + "\n")
        assert (await peer.answer()) == {"return": {}}
        await peer.send('{"execute": "query-version"}\n' + getfd[:9], fd)
        await peer.send(getfd[9:] + "\n")
        assert "qemu" in (await peer.answer())["return"]
        assert (await peer.answer()) == {"return": {}}
    os.close(fd)


async def test_the_files_of_a_peer_are_closed_with_it(control: Control) -> None:
    node = control.make("guest", 4)
    fd = control.backing_fd(node)
    before = open_fds()
    async with control.peer() as peer:
        await peer.do("getfd", fd, fdname="a")
        await peer.do("register-notifier", file="a")
        await peer.do("get-pfn", file="a", offset=1)
        await peer.do("get-pfn", file="/guest", offset=1)
        assert node.opens == 4
    await control.peers_down_to(0)
    assert node.opens == 1
    assert node.file is not None
    assert not node.file.notifiers
    assert node.file.pages.memory is not None
    assert node.file.pages.memory.references_count == 0
    await closed_again(before)
    os.close(fd)


# --- notifiers ----------------------------------------------------------------------


@asynccontextmanager
async def notified(
    control: Control, count: int = 1
) -> AsyncIterator[tuple[Node, list[tuple[Peer, int]]]]:
    """A file of 8 pages, and *count* peers with a notifier each."""
    node = control.make("guest", 8)
    async with trio.open_nursery() as nursery:
        peers: list[tuple[Peer, int]] = []
        leave = trio.Event()

        async def one(task_status: trio.TaskStatus[tuple[Peer, int]]) -> None:
            async with control.peer() as peer:
                number = (await peer.do("register-notifier", file="/guest"))["notifier"]
                task_status.started((peer, number))
                await leave.wait()

        peers += [await nursery.start(one) for _ in range(count)]
        yield node, peers
        leave.set()


@pytest.mark.parametrize(
    ("mode", "pages"), [(0, (0, 2)), (FALLOC_FL_KEEP_SIZE, (7, 2)), (PUNCH, (1, 3))]
)
async def test_every_fallocate_invalidates_after_the_backing_in_pages(
    control: Control, mode: int, pages: tuple[int, int]
) -> None:
    """inaccessible_fallocate() of v8, in pages as its pgoff_t says."""
    async with (
        notified(control) as (node, [(peer, number)]),
        trio.open_nursery() as nursery,
    ):
        before = os.fstat(node.fd).st_blocks
        nursery.start_soon(fallocate, control, node, mode, *pages)
        event = await peer.event()
        assert event == {
            "event": "INVALIDATE",
            "notifier": number,
            "start": pages[0],
            "end": sum(pages),
            "sequence": 1,
        }
        if mode != PUNCH:
            assert os.fstat(node.fd).st_blocks > before
        assert len(nursery.child_tasks) == 1
        await peer.acknowledge(event)


async def test_an_unaligned_allocation_invalidates_the_pages_that_it_touches(
    control: Control,
) -> None:
    async with notified(control) as (node, [(peer, _)]):
        assert node.file is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                fakes.fallocate, node.file, 0, PAGE - 1, PAGE + 2, trio.Event()
            )
            event = await peer.event()
            assert (event["start"], event["end"]) == (0, 3)
            await peer.acknowledge(event)


async def test_a_failed_fallocate_invalidates_and_a_refused_one_does_not(
    control: Control,
) -> None:
    """v8 calls the notifiers even if the backing fails."""
    async with notified(control) as (node, [(peer, _)]):
        errors: list[int | None] = []

        async def fail(offset: int, length: int, mode: int) -> None:
            assert node.file is not None
            try:
                await fakes.fallocate(node.file, mode, offset, length, trio.Event())
            except OSError as exc:
                errors.append(exc.errno)

        await fail(1, PAGE, PUNCH)
        assert errors == [errno.EINVAL]
        async with trio.open_nursery() as nursery:
            # More than the tmpfs of the tests can hold.
            nursery.start_soon(fail, 0, 100 << 20, 0)
            event = await peer.event()
            assert (event["start"], event["end"]) == (0, (100 << 20) // PAGE)
            assert event["sequence"] == 1
            await peer.acknowledge(event)
        assert errors == [errno.EINVAL, errno.ENOSPC]


async def test_all_peers_get_the_event_at_once(control: Control) -> None:
    async with notified(control, 3) as (node, peers), trio.open_nursery() as nursery:
        nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
        events = [await peer.event() for peer, _ in peers]
        assert len(nursery.child_tasks) == 1
        for (peer, _), event in zip(reversed(peers), reversed(events), strict=True):
            await peer.acknowledge(event)


async def test_everything_else_goes_on_while_a_punch_waits(control: Control) -> None:
    async with notified(control) as (node, [(peer, _)]):
        other = control.make("other", 1)
        async with trio.open_nursery() as nursery, control.peer() as witness:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            event = await peer.event()
            await fallocate(control, other, 0, 0, 1)
            assert (await witness.do("query-file", file="/guest"))["notifiers"] == 1
            assert (await witness.do("get-pfn", file="/guest", offset=0))["order"] == 0
            assert "pfn" in await peer.do("get-pfn", file="/guest", offset=5)
            (row,) = await witness.do("query-notifiers")
            assert (row["events_sent"], row["waiting"]) == (1, event["sequence"])
            await peer.acknowledge(event)


async def test_register_waits_for_the_end_of_an_invalidation(control: Control) -> None:
    async with notified(control) as (node, [(peer, _)]), control.peer() as late:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            event = await peer.event()
            await late.send(late.line("register-notifier", file="/guest") + "\n")
            # This is answered after the registration, in its turn.
            await late.send('{"execute": "query-version"}\n')
            await trio.testing.wait_all_tasks_blocked()
            assert node.file is not None
            assert len(node.file.notifiers) == 1
            rows = await peer.do("query-notifiers")
            assert [(row["start"], row["effective"]) for row in rows] == [
                (None, True),
                (None, False),
            ]
            await peer.acknowledge(event)
        assert "notifier" in (await late.answer())["return"]
        assert "qemu" in (await late.answer())["return"]
        assert all(row["effective"] for row in await peer.do("query-notifiers"))


async def test_a_callback_can_unregister_its_own_notifier(control: Control) -> None:
    async with notified(control, 2) as (node, [(peer, number), (other, _)]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            await peer.event()
            await peer.send(peer.line("unregister-notifier", notifier=number) + "\n")
            await trio.testing.wait_all_tasks_blocked()
            await other.acknowledge(await other.event())
            assert (await peer.answer()) == {"return": {}}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            await other.acknowledge(await other.event())
        assert peer.events == []


async def test_an_answer_overtakes_a_command_that_waits_for_it(
    control: Control,
) -> None:
    async with (
        notified(control) as (node, [(peer, _)]),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
        event = await peer.event()
        await peer.send(peer.line("register-notifier", file="/guest") + "\n")
        await peer.acknowledge(event)
        assert "notifier" in (await peer.answer())["return"]


async def test_unexpected_answers_are_refused(control: Control) -> None:
    async with notified(control, 2) as (node, [(peer, number), (other, _)]):
        for sequence in (0, 1, 2**62):
            assert "EINVAL" in await peer.do(
                "invalidate-done", notifier=number, sequence=sequence
            )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            event, others = await peer.event(), await other.event()
            # A peer cannot see or unregister another's notifier.
            assert "ENOENT" in await peer.do(
                "invalidate-done", notifier=others["notifier"], sequence=1
            )
            assert "ENOENT" in await peer.do(
                "unregister-notifier", notifier=others["notifier"]
            )
            await peer.acknowledge(event)
            again = {"notifier": number, "sequence": event["sequence"]}
            assert "EINVAL" in str(await peer.do("invalidate-done", **again))
            await other.acknowledge(others)


async def test_a_peer_that_hangs_up_in_a_punch_delays_no_other(
    control: Control,
) -> None:
    async with notified(control) as (node, _), trio.open_nursery() as nursery:
        async with control.peer() as peer:
            await peer.do("register-notifier", file="/guest")
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            await peer.event()
        # The other peer still has to answer.
        await control.peers_down_to(1)
        assert node.file is not None
        assert len(node.file.notifiers) == 1
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_delays_no_other(control: Control) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("register-notifier", file="/guest")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            await peer.event()
            await peer.stream.send_eof()
        assert node.file is not None
        assert not node.file.notifiers


async def test_a_silent_peer_is_disconnected_and_the_punch_goes_on(
    scratch: Path, backing: Backing, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(ack_seconds=0.05)
    with trio.fail_after(60):
        async with (
            controlling(str(scratch / "control"), backing, policy) as control,
            notified(control) as (node, [(peer, number)]),
        ):
            await fallocate(control, node, PUNCH, 0, 1)
            assert (await peer.event())["notifier"] == number
            await peer.closed()
            await control.peers_down_to(0)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert f"no answer to an event of notifier {number}" in record.getMessage()


# --- page frames ----------------------------------------------------------------------


async def test_a_page_has_a_frame_and_an_order(control: Control) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        got = await peer.do("get-pfn", file="/guest", offset=3)
        assert got == {"pfn": BASE + 3, "order": 0}
        assert os.fstat(node.fd).st_blocks * 512 == PAGE
        got = await peer.do("get-pfn", file="/guest", offset=2, count=4)
        assert got == {
            "extents": [{"offset": 2, "pfn": BASE + 2, "count": 4, "order": 0}]
        }
        info = await peer.do("query-file", file="/guest")
        assert (info["fetched"], info["referenced"], info["allocated"]) == (4, 5, 4)


async def test_past_the_end_is_refused_where_the_seed_would_allocate(
    control: Control,
) -> None:
    control.make("guest", 4)
    async with control.peer() as peer:
        said = await peer.do("get-pfn", file="/guest", offset=7)
        assert said == "EINVAL: offset 7 lies past the end (4 pages)"
        said = await peer.do("get-pfn", file="/guest", offset=2, count=3)
        assert said == "EINVAL: offset 4 lies past the end (4 pages)"
        assert (await peer.do("query-file", file="/guest"))["referenced"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"offset": -1},
        {"offset": 2**63},
        {"offset": 2**51},
        {"offset": 0, "count": 0},
        {"offset": 0, "count": -1},
        {"offset": "0"},
        {"offset": 1.5},
        {"offset": None},
        {},
        {"offset": 0, "page": 1},
    ],
    ids=str,
)
async def test_a_wrong_argument_is_einval(
    control: Control, arguments: dict[str, object]
) -> None:
    control.make("guest", 4)
    async with control.peer() as peer:
        assert "EINVAL" in await peer.do("get-pfn", file="/guest", **arguments)
    await control.still_serves()


async def test_a_page_can_be_put_as_often_as_it_was_got(
    control: Control,
) -> None:
    control.make("guest", 8)
    async with control.peer() as peer, control.peer() as other:
        for _ in range(2):
            await peer.do("get-pfn", file="/guest", offset=1, count=3)
        assert "EINVAL" in await other.do("put-pfn", file="/guest", pfn=BASE + 1)
        assert "EINVAL" in await peer.do(
            "put-pfn", file="/guest", pfn=BASE + 1, count=4
        )
        assert await peer.do("put-pfn", file="/guest", pfn=BASE + 1, count=3) == {}
        assert await peer.do("put-pfn", file="/guest", pfn=BASE + 2) == {}
        assert "EINVAL" in await peer.do("put-pfn", file="/guest", pfn=BASE + 2)
        (first, last) = (await peer.do("query-pins"))["references"]
        assert (first["pfn"], first["references"]) == (BASE + 1, 1)
        assert (last["pfn"], last["punched"]) == (BASE + 3, False)
        for pfn in (BASE + 1, BASE + 3):
            assert await peer.do("put-pfn", file="/guest", pfn=pfn) == {}
        pins = await peer.do("query-pins")
        assert pins["references"] == []
        # The pages stay in their frames all the same.
        assert [extent["count"] for extent in pins["extents"]] == [3]
        stats = await peer.do("query-stats")
        assert (stats["pages_got"], stats["pages_put"]) == (6, 6)


async def test_a_punched_page_is_listed_until_it_is_put(control: Control) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0, count=4)
        await fallocate(control, node, PUNCH, 1, 2)
        pins = await peer.do("query-pins")
        assert [(one["offset"], one["count"]) for one in pins["extents"]] == [
            (0, 1),
            (3, 1),
        ]
        punched = [one for one in pins["references"] if one["punched"]]
        assert [(one["offset"], one["count"]) for one in punched] == [(1, 2)]
        frames = control.frames.opened[0]
        assert frames.freed == []
        await peer.do("put-pfn", file="/guest", pfn=BASE + 1, count=2)
        assert frames.freed == [(BASE + 1, 2)]


async def test_a_punched_page_without_references_is_free_at_once(
    control: Control,
) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0)
        await peer.do("put-pfn", file="/guest", pfn=BASE)
        await fallocate(control, node, PUNCH, 0, 1)
        assert control.frames.opened[0].freed == [(BASE, 1)]


async def test_pages_that_move_in_a_punch_are_invalidated_like_punched_ones(
    control: Control,
) -> None:
    async with notified(control) as (node, [(peer, _)]):
        await peer.do("get-pfn", file="/guest", offset=0, count=8)
        control.frames.opened[0].moves = {6: 77, 7: 78}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 2)
            for start, end in ((0, 2), (6, 8)):
                event = await peer.event()
                assert (event["start"], event["end"]) == (start, end)
                await peer.acknowledge(event)
        assert (await peer.do("get-pfn", file="/guest", offset=6))["pfn"] == 77
        stats = await peer.do("query-stats")
        assert (stats["pages_moved"], stats["punches"]) == (2, 1)


async def test_pages_found_moved_in_a_callback_are_reported_after_it(
    control: Control,
) -> None:
    """get-pfn in a callback does not wait for the invalidation that waits for it."""
    async with notified(control, 2) as (node, [(peer, _), (other, _)]):
        await peer.do("get-pfn", file="/guest", offset=0, count=6)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallocate, control, node, PUNCH, 0, 1)
            first = await peer.event()
            # Two runs of frames, and one range of pages.
            control.frames.opened[0].moves = {3: 77, 4: 99}
            assert "pfn" in await peer.do("get-pfn", file="/guest", offset=7)
            await other.acknowledge(await other.event())
            await peer.acknowledge(first)
            for one in (peer, other):
                event = await one.event()
                assert (event["start"], event["end"]) == (3, 5)
                await one.acknowledge(event)


async def test_pages_found_moved_are_reported_before_the_reply(
    control: Control,
) -> None:
    async with notified(control) as (_, [(other, _)]), control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0, count=6)
        control.frames.opened[0].moves = {3: 77}
        await peer.send(peer.line("get-pfn", file="/guest", offset=7) + "\n")
        event = await other.event()
        assert (event["start"], event["end"]) == (3, 4)
        await other.acknowledge(event)
        assert "pfn" in (await peer.answer())["return"]


async def test_fetched_pages_are_freed_when_the_file_is_removed_in_the_backing(
    control: Control, backing: Backing
) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0)
        await peer.do("put-pfn", file="/guest", pfn=BASE)
    await control.peers_down_to(0)
    os.unlink("guest", dir_fd=backing.root)
    control.namespace.opens.release(node)
    control.namespace.inodes.forget(node.ino, node.lookups)
    assert control.frames.opened[0].closed
    assert node.ino not in control.namespace.inodes.nodes


async def test_fetched_pages_stay_while_another_name_leads_to_them(
    control: Control, backing: Backing
) -> None:
    node = control.make("guest", 8)
    os.link("guest", "other", src_dir_fd=backing.root, dst_dir_fd=backing.root)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0)
    await control.peers_down_to(0)
    control.namespace.unlink(control.namespace.inodes.root, b"guest")
    control.namespace.opens.release(node)
    control.namespace.inodes.forget(node.ino, node.lookups)
    assert not control.frames.opened[0].closed
    async with control.peer() as peer:
        assert (await peer.do("get-pfn", file="/other", offset=0))["pfn"] == BASE


async def test_fetched_pages_stay_when_the_file_is_closed_and_forgotten(
    control: Control,
) -> None:
    node = control.make("guest", 8)
    async with control.peer() as peer:
        await peer.do("get-pfn", file="/guest", offset=0)
        await peer.do("put-pfn", file="/guest", pfn=BASE)
        control.namespace.opens.release(node)
        control.namespace.inodes.forget(node.ino, node.lookups)
        assert node.opens == 0
        (info,) = await peer.do("query-files")
        assert (info["name"], info["fetched"]) == ("/guest", 1)
        assert not control.frames.opened[0].closed
        # The kernel looks it up, unlinks it and forgets it.
        control.namespace.lookup(control.namespace.inodes.root, b"guest")
        control.namespace.unlink(control.namespace.inodes.root, b"guest")
        control.namespace.inodes.forget(node.ino, 1)
        assert control.frames.opened[0].closed
        assert await peer.do("query-files") == []


async def test_files_without_an_fd_are_listed_and_stay_without(
    control: Control,
) -> None:
    """Their fds were closed because fds ran out; the query opens the files briefly."""
    nodes = [control.make(f"f{number}", number) for number in range(3)]
    for node in nodes:
        control.namespace.opens.open(node, os.O_RDWR)
        let_go(node)
    async with control.peer() as peer:
        found = await peer.do("query-files")
    listed = {one["name"]: (one["size"], one["opens"]) for one in found}
    assert listed == {f"/f{number}": (number * PAGE, 2) for number in range(3)}
    assert {node.fd for node in nodes} == {-1}


async def test_a_file_that_is_closed_while_files_are_listed_is_not_listed(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks run between two files of a long list."""
    nodes = [control.make(f"f{number}") for number in range(2)]
    kept, closed = sorted(nodes, key=lambda node: node.ino)
    turns = itertools.count()

    async def give(_: Slices) -> None:
        # Both have been seen, and the first has been described.
        if next(turns) == len(nodes):
            control.namespace.opens.release(closed)

    monkeypatch.setattr(Slices, "give", give)
    async with control.peer() as peer:
        (info,) = await peer.do("query-files")
    assert info["ino"] == kept.ino


async def test_a_notifier_that_leaves_while_notifiers_are_listed_is_not_listed(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks run between two notifiers of a long list."""
    async with (
        notified(control) as (_, [(_, kept)]),
        control.peer() as leaving,
        control.peer() as witness,
    ):
        await leaving.do("register-notifier", file="/guest")
        server, turns = control.server, itertools.count()
        ((_, session),) = list(server.peers.items())[-2:-1]

        async def give(slices: Slices) -> None:
            # Both have been seen, and the first has been described.
            if next(turns) == 2:
                await session._notifying.close(slices)

        monkeypatch.setattr(Slices, "give", give)
        (row,) = await witness.do("query-notifiers")
    assert row["notifier"] == kept


async def test_a_reference_keeps_an_unlinked_file(control: Control) -> None:
    node = control.make("guest", 8)
    fd = control.backing_fd(node)
    async with control.peer() as peer:
        await peer.do("getfd", fd, fdname="a")
        await peer.do("get-pfn", file="a", offset=0)
        await peer.do("closefd", fdname="a")
        control.namespace.unlink(control.namespace.inodes.root, b"guest")
        control.namespace.opens.release(node)
        control.namespace.inodes.forget(node.ino, node.lookups)
        (info,) = await peer.do("query-files")
        assert info["name"] == f"(deleted inode {node.ino})"
    await control.peers_down_to(0)
    assert control.frames.opened[0].closed
    os.close(fd)


async def test_get_memory_is_the_memory(control: Control) -> None:
    node = control.make("guest", 2)
    async with control.peer() as peer:
        assert await peer.do("get-memory", file="/guest") == {}
        (fd,) = peer.fds
        os.pwrite(fd, b"secret", PAGE)
        assert os.pread(node.fd, 6, PAGE) == b"secret"
        os.close(fd)


async def test_memory_failure_needs_an_error_callback(control: Control) -> None:
    control.make("guest", 2)
    async with control.peer() as peer:
        said = await peer.do("memory-failure", file="/guest", offset=0)
        assert "EOPNOTSUPP" in said
        rules = await peer.do("query-semantics")
        assert (rules["name"], rules["events"]) == ("v8", ["INVALIDATE"])
        assert (rules["order"], rules["notifies_failures"]) == ("after", True)


@pytest.mark.parametrize("flags", [0x2, 0x4, 0x10, 0x8 | 0x4])
async def test_memfd_create_refuses_flags_as_the_seed_does(
    control: Control, flags: int
) -> None:
    async with control.peer() as peer:
        said = await peer.do("memfd-create", name="x", fdname="a", flags=flags)
        assert "EINVAL" in said


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
