"""inaccfs map: the pages of a file as cells."""

from __future__ import annotations

import errno
import os
import select
import sys
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

    from inaccfs.cli.terminal import Ending
    from inaccfs.client import Client, File
    from inaccfs.control.messages import FileInfo, MappedExtent

_AGAIN_SECONDS: Final = 0.5

# Lines around the cells: a title, an empty one, the legend, and the prompt after it.
_FRAME_LINES: Final = 7

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
        "referenced, in huge folios, being invalidated, or poisoned; and private or "
        "shared, in semantics that tell them apart. A cell is a page, or as many pages "
        "as it takes to fit the terminal. NO_COLOR is honoured.",
        epilog="exit status: 0, also after Ctrl-C; 1 if the file cannot be looked at",
    )
    parser.add_argument("file", metavar="FILE", help="a file in a mount")
    parser.add_argument(
        "--watch", action="store_true", help="draw anew as it changes, until Ctrl-C"
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
            text = shown.json() if as_json else shown.text()
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
    lines = text.split("\n")[: terminal.size().lines]
    body = f"{terminal.CLEAR_LINE}\n".join(lines)
    output.show(f"{terminal.HOME}{body}{terminal.CLEAR_REST}", end="")


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
            output.say_coloured(self.text())

    def json(self) -> str:
        """The file, and its extents."""
        found = self._file.query()
        extents = self._file.query_map()
        return msgspec.json.encode({"file": found, "extents": extents}).decode()

    def text(self) -> str:
        """A title, the cells, and a legend with counts."""
        info = self._file.query()
        runs = [_run(extent) for extent in self._file.query_map()]
        width, height = terminal.size()
        if not sys.stdout.isatty():
            height = 16 + _FRAME_LINES
        colour = terminal.has_colours()
        counts = counted(runs)
        pages = sum(counts.values())
        placed = layout(pages, info.page_size, width, height - _FRAME_LINES)
        cells = _PALETTE.cells(runs, placed.scale)
        lines = [
            _title(printable(self._name), info, placed.scale, width),
            *_PALETTE.rows(cells, placed, info.page_size, colour=colour),
            *([""] if cells else []),
            *_PALETTE.folded(counts, width, colour=colour, several="+" in cells),
        ]
        past = info.allocated - sum(
            count for kind, count in counts.items() if kind not in ".PS?"
        )
        if past > 0 and "?" not in counts:
            lines.append(f"{past:,} more allocated past the end of the file")
        return "\n".join(lines)


def _title(name: str, info: FileInfo, scale: int, width: int) -> str:
    pages = -(-info.size // info.page_size)
    rest = (
        f": {size_text(info.size)}, {pages:,} pages of {size_text(info.page_size)}; "
        f"a cell is {'one' if scale == 1 else size_text(scale * info.page_size)}"
    )
    room = max(width - len(rest), 10)
    # The end of a long path says more than its start.
    short = name if len(name) <= room else f"...{name[3 - room :]}"
    return f"{short}{rest}"


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
