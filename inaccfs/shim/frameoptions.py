"""Options and constants of page frames.

They are not in `inaccfs.shim.frames`, so that the command line need not import that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inaccfs.errors import OptionError

FRAME_BYTES: Final = 4096
"""The unit of page frame numbers, whatever the page size of the file."""

HUGE_ORDER: Final = 9
"""The order of the largest folio that a tmpfs has, a huge page of 2 MiB."""


@dataclass(frozen=True, slots=True)
class SimulatedMemory:
    """How much memory is simulated, and in what state."""

    # In bytes.
    size: int = 64 << 30
    # The largest folio that a file of 4 KiB pages is given; 0 gives base pages only.
    order: int = HUGE_ORDER
    # How many percent of the memory are in use from the start, in scattered frames.
    fragmentation: int = 0

    def __post_init__(self) -> None:
        if self.size < FRAME_BYTES or self.size % FRAME_BYTES:
            raise OptionError(
                f"simulated memory of {self.size} bytes: give a multiple of 4096"
            )
        if not 0 <= self.order <= HUGE_ORDER:
            raise OptionError(
                f"folios of order {self.order}: give one from 0 to {HUGE_ORDER}"
            )
        if not 0 <= self.fragmentation <= 100:
            raise OptionError(
                f"fragmentation of {self.fragmentation} percent: give one from 0 to 100"
            )
