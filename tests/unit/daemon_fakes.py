"""The daemon of a control socket, as the server knows it: its status and its files."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from inaccfs import __version__
from inaccfs.status import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.control.mountfiles import Listed, OpenFile
STATUS = Status(
    mountpoint="/mnt",
    backing="private tmpfs",
    size=1 << 20,
    page_size=4096,
    files=2,
    allocated_pages=3,
    semantics="v8",
    sealed=True,
    mmap="sealed",
    pfn_source="simulated",
    pinning="simulated",
    pid=42,
    control="/run/control",
    log=None,
    version=__version__,
)


@dataclass
class Daemon:
    """The status that the server asks for, or *error* if it is set."""

    error: Exception | None = None
    quits: int = 0
    # query-status waits for it.
    status_asked: trio.Event = field(default_factory=trio.Event)
    may_tell_status: trio.Event | None = None

    async def status(self) -> Status:
        self.status_asked.set()
        if self.may_tell_status is not None:
            await self.may_tell_status.wait()
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return STATUS

    def quit(self) -> None:
        self.quits += 1


class NoFiles:
    """The files of a mount that has none."""

    def open_path(self, path: str) -> OpenFile:
        raise FileNotFoundError(2, "No such file or directory")

    def open_fd(self, fd: int) -> OpenFile:
        raise OSError(22, "no fd is one of this mount")

    async def create(
        self, label: str, size: int, uid: int, gid: int
    ) -> tuple[int, OpenFile]:
        raise OSError(28, "No space left on device")

    def all(self) -> Iterator[Listed]:
        yield from ()

    def name(self, ino: int) -> str:
        return ""

    @contextmanager
    def at(self, ino: int) -> Iterator[None]:
        yield None
