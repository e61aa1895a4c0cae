"""A file of a mount and a peer that gets its events, under the rules of a test."""

from __future__ import annotations

import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inaccfs.semantics import VERSIONS, versions
from tests.mount import raw
from tests.mount.peers import Peer, peer
from tests.mount.raw import KEEP_SIZE, PUNCH_HOLE
from tests.mount.support import MIB, PAGE, PATIENCE, allocated, opened, outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import inaccfs

PUNCH = PUNCH_HOLE | KEEP_SIZE
SIZE = 16 * PAGE
# A call of this length is not executed in the loop.
LONG = 8 * MIB

# test_proposals.py tests the proposals after Linux 6.18.
NAMES = tuple(
    version.name for version in VERSIONS if version.__module__ == versions.__name__
)
GUEST_MEMFD = tuple(name for name in NAMES if name.startswith("guest_memfd"))
BY_RANGE = ("bind", *GUEST_MEMFD)

Event = tuple[str, int, int]


@dataclass
class Guest:
    """A file of a mount, and a peer that gets its events."""

    fd: int
    shim: Peer
    pool: ThreadPoolExecutor

    def fallocate(
        self, mode: int, offset: int, length: int, *events: Event, blocks: str = ""
    ) -> str:
        """Return the outcome; meanwhile exactly *events* must be sent.

        *blocks* has a letter for each event: "t" if the punched memory is still there
        at the event, "g" if it has been freed.
        """
        before = allocated(self.fd)
        call = self.pool.submit(outcome, raw.fallocate, self.fd, mode, offset, length)
        for at, wanted in enumerate(events):
            event = self.shim.event()
            assert (event["event"], event["start"], event["end"]) == wanted
            if blocks:
                assert (allocated(self.fd) < before) is (blocks[at] == "g"), event
            assert not call.done()
            assert self.shim.done(event) == {}
        result = call.result(PATIENCE)
        # Events come before the reply to a later command.
        self.shim.do("query-version")
        assert self.shim.events == []
        return result


@contextmanager
def guest(mount: inaccfs.Mount, name: str, size: int = SIZE) -> Iterator[Guest]:
    """A guest's file of *size* bytes, registered or bound, as in the version."""
    with (
        opened(mount.path / "guest", os.O_RDWR | os.O_CREAT) as fd,
        peer(mount.control) as shim,
        ThreadPoolExecutor() as pool,
    ):
        os.ftruncate(fd, size)
        register(shim, name, size // PAGE)
        yield Guest(fd, shim, pool)


def register(shim: Peer, name: str, pages: int) -> int:
    """Register or bind a notifier of /guest; return its number."""
    if name in BY_RANGE:
        made = shim.do("bind", file="/guest", start=0, end=pages)
    else:
        made = shim.do("register-notifier", file="/guest")
    number: int = made["notifier"]
    return number


def mine(directory: Path, body: str, base: str = "V8") -> str:
    """A file with a class Mine, in the form of --semantics."""
    path = directory / "mine.py"
    path.write_text(
        "import errno\nfrom inaccfs.semantics import *\n\n"
        f"class Mine({base}):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    )
    return f"{path}:Mine"
