"""The KVM of the emulated machine, as a side of the comparison."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from inaccfs.kvm.live import boot, places
from inaccfs.kvm.live.places import LiveError
from inaccfs.kvm.probe.table import Answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.kvm.live.places import Kernel
    from inaccfs.kvm.probe.asking import Row

_ROWS: Final = "rows.json"


class Emulated:
    """A kernel of the cache, which boots once for all rows."""

    name = "emulated"

    def __init__(self, mode: str = "real") -> None:
        """*mode* is the CPU mode of the guests, one of `assembler.MODES`.

        Raises:
            LiveError: there is no such kernel, or no QEMU.
        """
        boot.find_qemu()
        self.kernel: Final[Kernel] = places.find_kernel()
        self.origin = self.kernel.source
        self._mode: Final = mode
        self.release = ""
        """The release of the kernel that has answered, as in uname(2)."""

    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        """Boot, run all rows there, and return those of *rows*.

        Raises:
            LiveError: the machine did not complete the rows.
        """
        found = self._ask()
        self.release = found["kernel"]
        return [Answer(*found["rows"][row.name]) for row in rows]

    def _ask(self) -> dict[str, Any]:
        command = boot.python(
            "inaccfs.kvm.probe.inside", "--mode", self._mode, f"/mnt/{_ROWS}"
        )
        run = boot.run(self.kernel, command)
        if run.status or _ROWS not in run.files:
            said = (run.stderr or run.stdout).strip().splitlines()[-1:]
            raise LiveError(
                f"asking in the emulated machine failed with status {run.status}: "
                f"{''.join(said)}"
            )
        found: dict[str, Any] = json.loads(run.files[_ROWS])
        return found
