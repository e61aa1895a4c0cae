"""The rows, by group, in the order in which they run and are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.kvm.probe.rows import (
    attributes,
    creation,
    exits,
    files,
    guests,
    halves,
    life,
    prefault,
    races,
    regions,
    slots,
)

if TYPE_CHECKING:
    from inaccfs.kvm.probe.asking import Row

ROWS: Final[list[Row]] = [
    *creation.ROWS.rows,
    *files.ROWS.rows,
    *regions.ROWS.rows,
    *slots.ROWS.rows,
    *attributes.ROWS.rows,
    *guests.ROWS.rows,
    *halves.ROWS.rows,
    *exits.ROWS.rows,
    *prefault.ROWS.rows,
    *life.ROWS.rows,
    *races.ROWS.rows,
]
