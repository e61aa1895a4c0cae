"""Files over the control socket, without a mount: which one a peer means."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio

from inaccfs.fuse.files import OpenFile
from tests.unit import fakes
from tests.unit.control_fakes import PAGE, Control

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inaccfs.backing.root import Backing
    from inaccfs.shim.file import InaccessibleFile
    from inaccfs.shim.notice import Notice


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def closed_again(before: int) -> None:
    """Wait until no more fds are open than *before*: threads close the fds of peers."""
    while open_fds() > before:  # noqa: ASYNC110 - the threads notify nothing
        await trio.sleep(0.001)


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
