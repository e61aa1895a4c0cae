"""What the shim uses of the daemon's loop."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio
import trio.testing

from inaccfs.shim.loop import TRIO, first_of

if TYPE_CHECKING:
    import threading


async def test_without_a_thread_a_call_fails_with_an_errno(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the limit of processes (systemd's TasksMax): a punch is EAGAIN, no bug."""

    async def refused(*_: object, limiter: trio.CapacityLimiter) -> NoReturn:
        assert limiter.total_tokens == 1
        # What CPython raises in threading.Thread.start().
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", refused)
    with pytest.raises(BlockingIOError) as caught:
        await TRIO.in_thread(int, limiter=trio.CapacityLimiter(1))
    assert caught.value.errno == errno.EAGAIN


async def test_what_a_call_raises_itself_is_left_as_it_is() -> None:
    limiter = trio.CapacityLimiter(1)

    def broken() -> threading.Thread:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await TRIO.in_thread(broken, limiter=limiter)
    assert await TRIO.in_thread(int, "7", limiter=limiter) == 7


async def test_the_first_of_several_ends_the_others() -> None:
    first, second = trio.Event(), trio.Event()
    for event in (second, first):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first_of, first.wait, second.wait)
            await trio.testing.wait_all_tasks_blocked()
            event.set()


async def test_an_error_of_one_is_an_error_of_all() -> None:
    async def fails() -> None:
        raise OSError(errno.EIO, "no")

    with pytest.raises(BaseExceptionGroup):
        await first_of(trio.sleep_forever, fails)
