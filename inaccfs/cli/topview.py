"""Draws the view of inaccfs top with rich, in characters that any terminal has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from inaccfs.cli.units import size_text
from inaccfs.streams import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from inaccfs.control.messages import NotifierInfo, Stats
    from inaccfs.status import Status
    from inaccfs.tracing.rates import Rates

# At most this fraction of the lines is for waiting notifiers, and for refused calls.
_PART: Final = 4

# The lines that are always shown: three at the top, an empty one, and a table's header.
_FIXED_LINES: Final = 5

_SILENT_SECONDS: Final = 3.0


@dataclass(frozen=True)
class View:
    """A mount at one moment."""

    status: Status
    stats: Stats
    # Notifiers that have not answered an event.
    waiting: Sequence[NotifierInfo]
    # For how many seconds the daemon has not answered.
    silent: float
    # How many records of the trace were lost.
    lost: int
    rates: Rates
    # CLOCK_MONOTONIC, in nanoseconds.
    now: int

    def drawn(self, height: int) -> Group:
        """Draw the view, in at most *height* lines if that is possible."""
        few = max(height // _PART - 2, 1)
        parts: list[RenderableType] = [self._head(), ""]
        used = _FIXED_LINES
        below: list[RenderableType] = []
        for table, rows in (self._in_flight(few), self._refused(few)):
            if rows:
                below += ["", table]
                used += rows + 2
        parts.append(self._rates(max(height - used, 1)))
        return Group(*parts, *below)

    def _head(self) -> Text:
        status, stats = self.status, self.stats
        head = Text(no_wrap=True, overflow="crop")
        head.append("inaccfs top", "bold")
        head.append(f"  {printable(status.mountpoint)}  {printable(status.semantics)}")
        head.append(f"  pid {status.pid}  q quits")
        if self.silent > _SILENT_SECONDS:
            words = f"  no answer for {self.silent:.0f} s"
            head.append(words, "bold red")
        if self.lost:
            head.append(f"  {self.lost:,} records lost", "bold red")
        size = size_text(status.size) if status.size else "no limit"
        memory = size_text(status.allocated_pages * status.page_size)
        head.append(
            f"\npeers {stats.peers:,}   notifiers {stats.notifiers:,}   "
            f"files {status.files:,}   memory {memory} of {size}   "
            f"evicted {stats.evictions:,}"
        )
        head.append(
            f"\nframes ({status.pfn_source}): fetched {stats.fetched:,} pages   "
            f"references {stats.references:,}   moved {stats.pages_moved:,}   "
            f"poisoned {stats.pages_poisoned:,}"
        )
        return head

    def _rates(self, most: int) -> Table:
        table = _table()
        _column(table, "request")
        for name in ("a second", "refused/s", "p50 us", "p99 us", "in all"):
            _column(table, name, right=True)
        for rate in self.rates.rates(self.now)[:most]:
            table.add_row(
                rate.kind,
                f"{rate.a_second:,.1f}",
                f"{rate.refused_a_second:,.1f}" if rate.refused_a_second else "",
                _micros(rate.p50),
                _micros(rate.p99),
                f"{rate.total:,}",
            )
        return table

    def _in_flight(self, most: int) -> tuple[Table, int]:
        table = _table()
        _column(table, "in flight", style="yellow", ratio=1)
        _column(table, "waits for")
        _column(table, "pid", right=True)
        _column(table, "event", right=True)
        _column(table, "for s", right=True)
        for one in self.waiting[:most]:
            assert one.waiting is not None
            sent = self.rates.sent(one.notifier, one.waiting)
            table.add_row(
                printable(one.file),
                f"peer {one.peer}, notifier {one.notifier}",
                str(one.pid),
                str(one.waiting),
                "" if sent is None else f"{(self.now - sent) / 1e9:.1f}",
            )
        return table, _with_rest(table, len(self.waiting), most)

    def _refused(self, most: int) -> tuple[Table, int]:
        refused = self.rates.refused(self.now)
        table = _table()
        _column(table, "refused", style="red", ratio=1)
        _column(table, "pid", right=True)
        _column(table, "call")
        _column(table, "file", ratio=2)
        _column(table, "error")
        _column(table, "times", right=True)
        _column(table, "s ago", right=True)
        for one in refused[:most]:
            table.add_row(
                printable(one.command) or "?",
                str(one.pid),
                one.call,
                printable(one.file),
                one.error,
                f"{one.times:,}",
                f"{(self.now - one.last) / 1e9:.0f}",
            )
        return table, _with_rest(table, len(refused), most)


def _table() -> Table:
    return Table(box=None, pad_edge=False, header_style="bold", expand=True)


def _column(
    table: Table,
    name: str,
    *,
    right: bool = False,
    style: str = "",
    ratio: int | None = None,
) -> None:
    """Add a column; text that does not fit is cut, without an ellipsis."""
    table.add_column(
        name,
        justify="right" if right else "left",
        style=style,
        ratio=ratio,
        no_wrap=True,
        overflow="crop",
    )


def _with_rest(table: Table, count: int, most: int) -> int:
    """Add a row that says how many more there are; return the number of rows."""
    if count <= most:
        return count
    table.add_row(f"and {count - most:,} more")
    return most + 1


def _micros(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:,.1f}"
