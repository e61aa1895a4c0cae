"""The tools of an experiment: mounts, and output."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from inaccfs import launch, userfiles
from inaccfs.client import connect
from inaccfs.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from inaccfs.client import Client
    from inaccfs.launch import Mount
    from inaccfs.semantics import Semantics

_GAP: Final = "  "

# How long an event may be unanswered: experiments hold events while other threads work,
# which may take long on a busy machine. An eviction would change what they find.
_ACK_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class Misfit:
    """Rules that an experiment cannot run on: those with this value of a rule."""

    rule: str
    value: object
    why: str


HUGE_ONLY: Final = Misfit(
    "granule",
    "huge page",
    "it works with single pages, and these files consist of huge ones",
)
IN_FILES: Final = Misfit(
    "attributes",
    "file",
    "it converts pages of a VM, and these rules keep attributes in the file",
)
GET_WAITS: Final = Misfit(
    "get_waits",
    True,
    "it gets pages in callbacks, where get-pfn would wait by these rules",
)
LOCKED: Final = Misfit(
    "references",
    "locked",
    "it punches what somebody has got, and a punch would wait by these rules",
)


@dataclass(frozen=True, slots=True)
class Experiment:
    """A question, and the function that answers it."""

    # The name for `inaccfs experiment`, and of its module and page.
    name: str
    # One sentence.
    question: str
    run: Callable[[Lab], None]
    # The semantics that it runs on without --semantics.
    semantics: tuple[str, ...]
    # Whether its output is the same each time.
    exact: bool = True
    # Whether it calls `Lab.draw`.
    draws: bool = False
    # What it cannot run on.
    misfits: tuple[Misfit, ...] = (HUGE_ONLY,)

    def check(self, name: str, rules: Semantics) -> None:
        """Raise `OptionError` if it cannot run on *rules*, which *name* names."""
        for each in self.misfits:
            if getattr(rules, each.rule) == each.value:
                label = userfiles.label(name)
                raise OptionError(
                    f"experiment {self.name} cannot run on {label}: {each.why}"
                )


@dataclass(frozen=True, slots=True)
class Table:
    """A table that an experiment has shown."""

    head: list[str]
    # Numbers stay numbers; everything else is text.
    rows: list[list[int | float | str]]


@dataclass(frozen=True, slots=True)
class Bench:
    """A mount, and a client of it."""

    semantics: str
    mount: Mount
    shim: Client


class Lab:
    """Makes mounts and shows results."""

    def __init__(
        self,
        semantics: Sequence[str],
        show: Callable[[str], object],
    ) -> None:
        """*show* takes a line."""
        self.semantics: Final = tuple(semantics)
        # The chart for --plot: SVG, or nothing if none was drawn.
        self.drawn = ""
        # The tables shown so far, for programs.
        self.tables: Final[list[Table]] = []
        self.lines: Final[list[str]] = []
        self._show: Final = show

    @staticmethod
    def label(semantics: str) -> str:
        """A short name: of FILE.py:CLASS the class."""
        return userfiles.label(semantics)

    @contextmanager
    def bench(self, semantics: str, **options: Any) -> Iterator[Bench]:  # noqa: ANN401 - mounted()'s
        """A mount for a with block; *options* are those of `mounted`.

        Unless they say another *ack_timeout*, it is so long that nobody is evicted.
        """
        options = {"ack_timeout": _ACK_SECONDS, **options}
        with (
            launch.mounted(semantics=semantics, **options) as mount,
            connect(mount.path) as shim,
        ):
            yield Bench(self.label(semantics), mount, shim)

    def say(self, text: str = "") -> None:
        """Show a line."""
        self.lines.append(text)
        self._show(text)

    def draw(self, svg: str) -> None:
        """The chart of the results, for --plot: the text of an SVG file."""
        self.drawn = svg

    def columns(
        self, head: Sequence[str], columns: Sequence[Iterable[tuple[str, object]]]
    ) -> None:
        """Show a table by its columns of (name of the row, value), with equal names.

        Raises:
            ValueError: the columns are not equally long; or what `table` raises.
        """
        rows = zip(*columns, strict=True)
        self.table(head, [(row[0][0], *(value for _, value in row)) for row in rows])

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table, with numbers aligned right.

        Raises:
            ValueError: a row is not as long as *head*.
        """
        for row in rows:
            if len(row) != len(head):
                raise ValueError(f"a row of {len(row)} cells below {len(head)}: {row}")
        self.tables.append(Table(list(head), [list(map(_plain, row)) for row in rows]))
        cells = [list(map(str, row)) for row in rows]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        right = [
            all(isinstance(row[at], int | float) for row in rows)
            for at in range(len(head))
        ]
        for line in (list(head), *cells):
            self._show(
                _GAP.join(
                    cell.rjust(width) if flush else cell.ljust(width)
                    for cell, width, flush in zip(line, widths, right, strict=True)
                ).rstrip()
            )


def _plain(cell: object) -> int | float | str:
    return cell if isinstance(cell, int | float) else str(cell)
