"""Shared pages by the control socket: population from them, windows and pins."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest

from inaccfs.control.limits import Limits, Policy
from inaccfs.semantics import InPlaceNext
from tests.unit.control_conversions import PAGES, convert, serving, shim_of
from tests.unit.control_fakes import BASE, PAGE

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs.backing.root import Backing


# --- population -----------------------------------------------------------------------


async def test_populate_copies_from_shared_pages_of_a_named_file(
    scratch: Path, backing: Backing
) -> None:
    async with serving(scratch, backing) as control, control.peer() as peer:
        node = control.make("source", PAGES)
        fd = control.backing_fd(node)
        await peer.do("getfd", fd, fdname="source")
        os.pwrite(fd, b"image", 3 * PAGE)
        arguments = {"file": "/guest", "offset": 1, "source": "source"}
        arguments["source-offset"] = 3
        line = json.dumps(
            {"execute": "populate", "arguments": arguments | {"count": 2}}
        )
        # Pages of a source that are private cannot be read.
        refusal = (await peer.ask(line))["error"]
        assert refusal["desc"].startswith("EFAULT: page 3 of the source is private")
        assert refusal["offset"] == 3
        await peer.do(
            "set-memory-attributes", file="source", offset=3, count=1, private=False
        )
        # The second page is refused, and so only the first has been done.
        assert (await peer.ask(line))["return"] == {"count": 1}
        guest = os.open(f"/proc/self/fd/{shim_of(control).fd}", os.O_RDONLY)
        assert os.pread(guest, 5, PAGE) == b"image"
        os.close(guest)
        os.close(fd)


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "none"},
        {"source": "/guest"},
        {"source": ""},
        {"source": 3},
        {"source-offset": 1},
        {"source": "source", "source-offset": -1},
        {"source": "source", "source-offset": PAGES},
        {"count": 0},
        {"count": PAGES + 1},
        {"count": 1 << 50},
        {"offset": 2.5},
    ],
    ids=str,
)
async def test_bad_sources_are_one_clear_line(
    scratch: Path, backing: Backing, wrong: dict[str, Any]
) -> None:
    async with serving(scratch, backing) as control, control.peer() as peer:
        fd = control.backing_fd(control.make("source", PAGES))
        await peer.do("getfd", fd, fdname="source")
        os.close(fd)
        arguments = {"file": "/guest", "offset": 0, "count": 1} | wrong
        answer = await peer.do("populate", **arguments)
        assert answer.startswith(("EINVAL: ", "ENOENT: ", "EFAULT: ")), answer
        assert answer.isprintable()
        # A closed fdname does not exist.
        await peer.do("closefd", fdname="source")
        answer = await peer.do(
            "populate", file="/guest", offset=0, count=1, source="source"
        )
        assert answer.startswith("ENOENT: no fdname 'source'")


# --- shared windows and pins ----------------------------------------------------------


async def test_a_window_reads_and_writes_what_is_shared(
    scratch: Path, backing: Backing
) -> None:
    async with serving(scratch, backing) as control, control.peer() as peer:
        await convert(peer, 1, 1)
        data = b64encode(b"hello").decode()
        where = {"file": "/guest", "offset": PAGE + 7}
        assert await peer.do("write-shared", **where, data=data) == {}
        assert await peer.do("read-shared", **where, count=5) == {"data": data}
        refusal = await peer.ask(
            peer.line("read-shared", file="/guest", offset=2 * PAGE - 1, count=2)
        )
        assert refusal["error"]["offset"] == 2
        assert refusal["error"]["desc"] == "EFAULT: SIGBUS: page 2 is private"
        for wrong in ("?", "====", "", "aGVsbG8", "a b"):
            answer = await peer.do("write-shared", **where, data=wrong)
            assert answer.startswith("EINVAL: `data` is"), answer


async def test_pins_are_counted_listed_and_limited(
    scratch: Path, backing: Backing
) -> None:
    policy = Policy(limits=Limits(pages=3))
    async with (
        serving(scratch, backing, InPlaceNext, policy, initial="shared") as control,
        control.peer() as peer,
    ):
        found = await peer.do("pin-pages", file="/guest", offset=2, count=2)
        (row,) = (await peer.do("query-pins"))["references"]
        assert (row["offset"], row["count"], row["pinned"]) == (2, 2, True)
        answer = await peer.do("pin-pages", file="/guest", offset=0, count=2)
        assert answer.startswith("EDQUOT: ")
        assert (await convert(peer, 0, PAGES, True)).startswith("EAGAIN: page 2 ")
        parts = [{"pfn": one["pfn"], "count": one["count"]} for one in found["extents"]]
        assert await peer.do("unpin-pages", file="/guest", extents=parts) == {}
        answer = await peer.do("unpin-pages", file="/guest", pfn=BASE + 2)
        assert answer.startswith("EINVAL: ")
        assert await convert(peer, 0, PAGES, True) == {}


async def test_pins_and_references_have_one_limit_together(
    scratch: Path, backing: Backing
) -> None:
    policy = Policy(limits=Limits(pages=4))
    async with (
        serving(scratch, backing, policy=policy, initial="shared") as control,
        control.peer() as peer,
    ):
        await peer.do("bind", file="/guest", start=0, end=PAGES)
        place = {"file": "/guest", "offset": 0}
        assert "extents" in await peer.do("get-pfn", **place, count=2)
        answer = await peer.do("pin-pages", **place, count=3)
        assert answer.startswith("EDQUOT: 2 pages are got or pinned and 3 more")
        await peer.do("pin-pages", **place, count=2)
        for command in ("get-pfn", "pin-pages"):
            answer = await peer.do(command, **place)
            assert answer.startswith("EDQUOT: 4 pages are got or pinned"), command
        assert await peer.do("unpin-pages", file="/guest", pfn=BASE) == {}
        assert "pfn" in await peer.do("get-pfn", **place)
        assert await peer.do("put-pfn", file="/guest", pfn=BASE, count=2) == {}
        assert "extents" in await peer.do("pin-pages", **place, count=2)


async def test_pins_that_never_go_end_with_their_peer(
    scratch: Path, backing: Backing
) -> None:
    async with (
        serving(scratch, backing, initial="shared") as control,
        control.peer() as peer,
    ):
        async with control.peer() as vfio:
            await vfio.do("pin-pages", file="/guest", offset=2)
            assert (await convert(peer, 0, PAGES, True)).startswith("EAGAIN: ")
        await control.peers_down_to(1)
        assert await convert(peer, 0, PAGES, True) == {}
