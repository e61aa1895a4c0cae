"""Threads for what has to be done, also where the system has no more for now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.trouble import Trouble

# How long to wait where no thread is to be had.
_NO_THREAD_SECONDS: Final = 0.1


async def do(
    work: Callable[[], None],
    limiter: trio.CapacityLimiter,
    trouble: Trouble,
    called: str,
    *,
    abandon: bool = False,
) -> None:
    """Call *work*, which does not raise, in a thread; wait until there is one for it.

    *called* is the work in the words of the log. With *abandon* a thread that hangs is
    left alone when the caller is cancelled.
    """
    while True:
        try:
            return await trio.to_thread.run_sync(
                work, abandon_on_cancel=abandon, limiter=limiter
            )
        except RuntimeError as exc:
            # Of threading: there may be no more (systemd's TasksMax).
            trouble.met(f"{called} waits: {exc}")
            await trio.sleep(_NO_THREAD_SECONDS)
