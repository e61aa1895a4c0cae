"""What tests of the channel share: lengths, and a long allocation that has begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inaccfs.fuse.wire import Op
from tests.unit.fakes import FALLOCATE_IN, World

if TYPE_CHECKING:
    from tests.unit.blocked_fakes import BlockedAllocator

PAGE = 4096
# More than is dealt with in the trio loop, and more than cannot be interrupted.
LONG = 8 << 20
INTERRUPTIBLE = 256 << 20


async def start_allocation(world: World, blocked: BlockedAllocator) -> tuple[int, int]:
    """Begin a long allocation; return the file's nodeid and the unique."""
    nodeid = (await world.kernel.create(b"f")).entry().nodeid
    body = FALLOCATE_IN.pack(nodeid, 0, INTERRUPTIBLE, 0, 0)
    unique = await world.kernel.send(Op.FALLOCATE, nodeid, body)
    await blocked.entered.wait()
    return nodeid, unique
