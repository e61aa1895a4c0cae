"""inaccfs map: the pages of a file as cells."""

from __future__ import annotations

import errno
import os
import select
import sys
import textwrap
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs.cells import Kind, Palette, Run, counted, layout
from inaccfs.cli import output, terminal
from inaccfs.cli.units import size_text
from inaccfs.errors import InaccfsError, NoAnswerError
from inaccfs.streams import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from inaccfs.cli.terminal import Ending
    from inaccfs.client import Client, File
    from inaccfs.control.messages import FileInfo, MappedExtent

_AGAIN_SECONDS: Final = 0.5

# Lines of cells without a terminal.
_ROWS: Final = 16

# Beside the cells, the title and the legend: the empty line between them, and a prompt.
_OTHER_LINES: Final = 2

# A name with less than this is on a line of its own.
_NAME_COLUMNS: Final = 10

# A cell of the largest file. Titles have texts of at most this length.
_LARGEST: Final = 1 << 63

# A page is shown as the first kind that matches.
_PALETTE: Final = Palette(
    {
        "!": Kind("poisoned", "1;31", shows=True),
        "i": Kind("being invalidated", "1;35", shows=True),
        "R": Kind("referenced, in a huge folio", "1;32"),
        "r": Kind("referenced", "32"),
        "H": Kind("fetched, in a huge folio", "1;34"),
        "f": Kind("fetched", "34"),
        "p": Kind("allocated, private", "36"),
        "s": Kind("allocated, shared", "33"),
        "a": Kind("allocated", "36"),
        "P": Kind("hole, private", "2;36"),
        "S": Kind("hole, shared", "2;33"),
        ".": Kind("hole", "2"),
        "?": Kind("not known", "2"),
    }
)


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "map",
        help="show the pages of a file as cells",
        description="Show which pages of a file are holes, allocated, fetched, "
        "referenced, in huge folios, being invalidated, or poisoned; and "
        "private or shared, in semantics that have both. A cell is one "
        "page, or several if the file would not fit the terminal. "
        "NO_COLOR is honoured.",
        epilog="exit status: 0, also after Ctrl-C; 1 if the file cannot be queried",
    )
    parser.add_argument("file", metavar="FILE", help="a file in a mount")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="draw the map again when it changes, until Ctrl-C",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw the map, once or until Ctrl-C."""
    from inaccfs import client
    from inaccfs.cli.terminal import Ending
    from inaccfs.fuse import finding

    mount = finding.holding(args.file)
    with ExitStack() as stack:
        shim = stack.enter_context(client.connect(mount.path))
        try:
            file = stack.enter_context(_opened(shim, mount.path, args.file))
            shown = _Shown(args.file, file)
            if not args.watch:
                shown.once(as_json=args.json)
                return 0
            ending = stack.enter_context(Ending())
            _watch(shown, ending, as_json=args.json)
        except OSError as exc:
            if isinstance(exc, InaccfsError):
                raise
            raise InaccfsError(f"{args.file}: {exc.strerror}") from None
    return 0


def _opened(shim: Client, mountpoint: str, path: str) -> File:
    """Open the file, by its path from the mount's root if the user may do that.

    An fd would keep the mount busy. But only root and the owner may use paths, and a
    file may have no path, or a different one in the daemon.

    Raises:
        OSError: there is no such file, or the user may not open it.
        NoAnswerError: the daemon has stopped.
    """
    from inaccfs.fuse import finding

    def open_it() -> int:
        # The daemon accepts an fd that is open for writing, from any user.
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)

    try:
        fd = finding.ask(open_it, finding.DAEMON_SECONDS)
    except TimeoutError:
        raise NoAnswerError(f"{path}: its daemon does not answer (stopped?)") from None
    except OSError as exc:
        if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        try:
            return _by_path(shim, mountpoint, path)[0]
        except PermissionError:
            raise exc from None
    try:
        with suppress(OSError):
            file, ino = _by_path(shim, mountpoint, path)
            if ino == os.fstat(fd).st_ino:
                return file
        return shim.file(fd)
    finally:
        os.close(fd)


def _by_path(shim: Client, mountpoint: str, path: str) -> tuple[File, int]:
    """The file that the daemon finds by its path, and its inode number."""
    below = os.path.relpath(os.path.realpath(path), mountpoint)
    file = shim.file(f"/{below}")
    return file, file.query().ino


def _watch(shown: _Shown, ending: Ending, *, as_json: bool) -> None:
    screen = terminal.is_terminal() and not as_json
    if screen:
        output.show(terminal.ENTER, end="")
    poller = select.poll()
    poller.register(ending, select.POLLIN)
    poller.register(sys.stdout, 0)
    try:
        before = ""
        while not ending.asked:
            if as_json:
                text = shown.json()
            else:
                text = shown.text(terminal.screen() if screen else terminal.size())
            with ending.interrupting():
                if screen:
                    _draw(text)
                elif text != before:
                    output.show(text if not before or as_json else f"\n{text}")
            before = text
            if poller.poll(_AGAIN_SECONDS * 1000):
                return
    except KeyboardInterrupt:
        pass
    finally:
        if screen:
            output.show(terminal.LEAVE, end="")


def _draw(text: str) -> None:
    """Redraw the screen, without clearing lines before they are drawn."""
    columns, height = terminal.screen()
    lines = text.split("\n")[:height]
    # After a full line the cursor is on its last character: do not clear that.
    ends = (
        "" if terminal.length(line) >= columns else terminal.CLEAR_LINE
        for line in lines
    )
    body = "\n".join(map("".join, zip(lines, ends, strict=True)))
    rest = f"\n{terminal.CLEAR_REST}" if len(lines) < height else ""
    output.show(f"{terminal.HOME}{body}{rest}", end="")


class _Shown:
    """The file that is shown, and how."""

    def __init__(self, name: str, file: File) -> None:
        self._name: Final = name
        self._file: Final = file

    def once(self, *, as_json: bool) -> None:
        """Print it."""
        if as_json:
            output.say_json(self.json().encode())
        else:
            output.say_coloured(self.text(terminal.size()))

    def json(self) -> str:
        """The file, and its extents."""
        found = self._file.query()
        extents = self._file.query_map()
        return msgspec.json.encode({"file": found, "extents": extents}).decode()

    def text(self, size: terminal.Size) -> str:
        """A title, the cells, and a legend with counts, for a terminal of *size*."""
        info = self._file.query()
        runs = [_run(extent) for extent in self._file.query_map()]
        width, height = size
        colour = terminal.has_colours()
        counts = counted(runs)
        pages = sum(counts.values())
        last = _past_the_end(info, counts)
        if sys.stdout.isatty():
            others = [
                *_title(self._name, info, _LARGEST // info.page_size, width),
                *_PALETTE.folded(counts, width, several=True),
                *last,
            ]
            room = height - len(others) - _OTHER_LINES
        else:
            room = _ROWS
        placed = layout(pages, info.page_size, width, room)
        cells = _PALETTE.cells(runs, placed.scale)
        lines = [
            *_title(self._name, info, placed.scale, width),
            *_PALETTE.rows(cells, placed, info.page_size, colour=colour),
            *([""] if cells else []),
            *_PALETTE.folded(counts, width, colour=colour, several="+" in cells),
            *last,
        ]
        return "\n".join(lines)


def _title(name: str, info: FileInfo, scale: int, width: int) -> list[str]:
    """One line, or as many as a narrow terminal needs."""
    pages = -(-info.size // info.page_size)
    rest = (
        f"{size_text(info.size)}, {pages:,} pages of {size_text(info.page_size)}; "
        f"a cell is {'one' if scale == 1 else size_text(scale * info.page_size)}"
    )
    shown = printable(name)
    # The end of a long path says more than its start.
    room = width - len(f": {rest}")
    if room >= min(len(shown), _NAME_COLUMNS):
        return [f"{_end(shown, room)}: {rest}"]
    return [f"{_end(shown, max(width - 1, 1))}:", *textwrap.wrap(rest, max(width, 1))]


def _end(name: str, room: int) -> str:
    if len(name) <= room:
        return name
    return f"...{name[3 - room :]}" if room > 3 else name[-room:]


def _past_the_end(info: FileInfo, counts: Mapping[str, int]) -> list[str]:
    """A line if there is memory past the end of the file."""
    if "?" in counts:
        return []
    known = sum(count for kind, count in counts.items() if kind not in ".PS")
    past = info.allocated - known
    return [f"{past:,} more allocated past the end of the file"] * (past > 0)


def _run(extent: MappedExtent) -> Run:
    return Run(extent.offset, extent.offset + extent.count, _kind(extent))


def _kind(extent: MappedExtent) -> str:
    if extent.poisoned:
        return "!"
    if extent.invalidating:
        return "i"
    huge = extent.order > 0
    if extent.referenced:
        return "R" if huge else "r"
    if extent.fetched:
        return "H" if huge else "f"
    if extent.memory == "unknown":
        return "?"
    kinds = ".PS" if extent.memory == "hole" else "aps"
    return kinds[0 if extent.private is None else 1 if extent.private else 2]
