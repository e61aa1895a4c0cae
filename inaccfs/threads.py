"""Threads for work that must be done, even if the system has none at the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from inaccfs.errors import means_no_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.trouble import Trouble

# How long to wait if no thread can be started.
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
            # At a limit of processes, such as systemd's TasksMax.
            if not means_no_thread(exc):
                raise
            trouble.met(f"{called} waits: {exc}")
            await trio.sleep(_NO_THREAD_SECONDS)
