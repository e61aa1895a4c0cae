"""A control socket with rules of conversions, and what its tests ask of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from inaccfs.semantics import InPlaceV8, Semantics
from tests.unit.control_fakes import controlling
from tests.unit.one_file import mine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from inaccfs.backing.root import Backing
    from inaccfs.control.limits import Policy
    from inaccfs.shim.file import InaccessibleFile
    from tests.unit.control_fakes import Control, Peer

PAGES = 8


@asynccontextmanager
async def serving(
    scratch: Path,
    backing: Backing,
    base: type[Semantics] = InPlaceV8,
    policy: Policy | None = None,
    **chosen: object,
) -> AsyncIterator[Control]:
    """A control socket with these rules, and a file of eight pages, /guest."""
    with trio.fail_after(10):
        path = str(scratch / "control")
        async with controlling(path, backing, policy, mine(base, **chosen)) as control:
            control.make("guest", PAGES)
            yield control


async def convert(peer: Peer, offset: int, count: int, private: bool = False) -> Any:
    return await peer.do(
        "set-memory-attributes",
        file="/guest",
        offset=offset,
        count=count,
        private=private,
    )


async def attributes(peer: Peer) -> list[tuple[int, int, bool]]:
    rows = await peer.do("query-memory-attributes", file="/guest")
    return [(row["offset"], row["count"], row["private"]) for row in rows]


def shim_of(control: Control) -> InaccessibleFile:
    (found,) = [
        each for each in control.server.context.files.all() if each.name == "/guest"
    ]
    return found.file
