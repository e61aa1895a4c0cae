"""Chooses where a mount's page frames come from: the kernel, or a simulation.

It is not in `inaccfs.shim.frames`, which both sources share and which imports neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from inaccfs.errors import OptionError

if TYPE_CHECKING:
    from inaccfs.shim.frameoptions import SimulatedMemory
    from inaccfs.shim.frames import FrameSource


def choose(
    wanted: str,
    memory: SimulatedMemory,
    *,
    large_folios: bool,
    movable: bool = False,
) -> FrameSource:
    """The source for *wanted*: "auto", "pagemap" or "simulated".

    "auto" is "pagemap" where the kernel shows frames to this process, else "simulated",
    which has *memory*. *large_folios* says that a page of a tmpfs may belong to a folio
    of several pages; without it every folio counts as one page. With *movable* fetched
    pages are not pinned.

    Raises:
        OptionError: "pagemap" was asked for, and the kernel does not show frames.
    """
    # Imported here: a mount needs at most one of the two, and starts sooner.
    if wanted != "simulated":
        from inaccfs.shim import pagemap

        try:
            return pagemap.make_source(large_folios=large_folios, movable=movable)
        except OSError as exc:
            if wanted == "pagemap":
                raise OptionError(
                    f"no real page frames: {exc.strerror}; they need CAP_SYS_ADMIN in "
                    "the initial user namespace, so mount as root outside of "
                    "containers, or choose simulated frames"
                ) from exc
    from inaccfs.shim.simulated import SimulatedSource

    return SimulatedSource(memory)
