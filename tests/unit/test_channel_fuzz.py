"""After any data with a valid header: the reply that is due; the channel goes on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from inaccfs.fuse.wire import Op
from tests.unit.conftest import small_tmpfs
from tests.unit.fakes import (
    BATCH_FORGET_IN,
    CREATE_IN,
    FALLOCATE_IN,
    FORGET_ONE,
    OPEN_IN,
    RENAME2_IN,
    SETATTR_IN,
    World,
    read_in,
    serving,
)

if TYPE_CHECKING:
    import pytest

NO_REPLY = {Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT}

# A second INIT is a kernel bug that no channel can survive.
opcodes = st.one_of(
    st.sampled_from([op for op in Op if op != Op.INIT]),
    st.integers(0, 70).filter(lambda op: op != Op.INIT),
)
# Names that lead elsewhere are among them, which the kernel never sends.
junk = st.one_of(
    st.binary(max_size=120),
    st.sampled_from([b".\0", b"..\0", b"a/b\0", b"../../x\0", b".\0..\0"]),
)
u32 = st.sampled_from([0, 1, 2, 4095, 4096, 1 << 16, 1 << 31, (1 << 32) - 1])
u64 = st.one_of(u32, st.sampled_from([1 << 62, 1 << 63, (1 << 64) - 1]))
bodies = st.one_of(
    junk,
    # Arguments of the right shape, so that more than the length checks is reached.
    st.builds(FALLOCATE_IN.pack, u64, u64, u64, u32, u32),
    st.builds(OPEN_IN.pack, u32, u32),
    st.builds(
        lambda valid, n, m: SETATTR_IN.pack(
            *(valid, 0, 0, n % (1 << 62), 0, 0, 0, 0, m, m, 0, m, 0, m, m, 0)
        ),
        st.one_of(u32, st.integers(0, 1 << 12)), u64, u32,
    ),
    st.builds(lambda f, m, n: CREATE_IN.pack(f, m, 0, 0) + n, u32, u32, junk),
    st.builds(lambda d, f, n: RENAME2_IN.pack(d, f, 0) + n, u64, u32, junk),
    st.builds(lambda c, n, k: BATCH_FORGET_IN.pack(c, 0) + FORGET_ONE.pack(n, k), *(
        (st.integers(0, 3), u64, u64)
    )),
    st.builds(read_in, u32),
)  # fmt: skip
# The root, the open file, the directory, and an unknown node.
targets = st.integers(0, 3)


async def _ask(world: World, op: int, nodeid: int, body: bytes) -> None:
    unique = await world.kernel.send(op, nodeid, body)
    after = await world.kernel.send(Op.STATFS)
    replies = {(await world.kernel.receive()).unique}
    if op not in NO_REPLY:
        replies.add((await world.kernel.receive()).unique)
    assert replies == ({after} if op in NO_REPLY else {unique, after})
    assert world.kernel.is_silent()


async def _play(requests: list[tuple[int, int, bytes]]) -> None:
    backing = small_tmpfs()
    os.mkdir("d", dir_fd=backing.root)
    async with serving(backing) as world:
        file = (await world.kernel.create(b"f")).entry().nodeid
        directory = (await world.kernel.lookup(b"d")).entry().nodeid
        for op, target, body in requests:
            await _ask(world, op, (1, file, directory, 999)[target], body)
    backing.close()


@settings(max_examples=150)
@given(st.lists(st.tuples(opcodes, targets, bodies), min_size=1, max_size=8))
def test_each_request_has_exactly_the_replies_due(
    caplog: pytest.LogCaptureFixture,
    requests: list[tuple[int, int, bytes]],
) -> None:
    """Odd requests are refused, and none of them causes a bug."""
    caplog.clear()
    trio.run(_play, requests)
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
