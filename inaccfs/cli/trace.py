"""inaccfs trace: shows what happens to the files of a mount, as lines or a picture."""

from __future__ import annotations

import argparse
import select
import sys
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final, get_args

import msgspec

from inaccfs._version import __version__
from inaccfs.cli import output
from inaccfs.cli.terminal import Ending
from inaccfs.errors import InaccfsError, OptionError
from inaccfs.streams import create

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.client.tracing import Trace
    from inaccfs.control.messages import TraceRecord
    from inaccfs.shim.trace import What

# How long the daemon may take to send the last records.
_LAST_SECONDS: Final = 5.0


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    from inaccfs.shim.trace import What

    parser = commands.add_parser(
        "trace",
        help="show who does what to the files of a mount, and which peers get events",
        description="Show system calls, events and their answers as they happen, with "
        "caller, file, outcome and duration, or write them to a file for "
        "ui.perfetto.dev. Ctrl-C ends the trace. It is for root and the "
        "mount's owner. docs/tracing.md explains it.",
        epilog="exit status: 0, also after Ctrl-C and SIGTERM; 1 if the trace failed, "
        "or the daemon was killed; 2 if the arguments are wrong",
    )
    parser.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        help="a mount, or the path of its control socket",
    )
    parser.add_argument(
        "-o",
        dest="file",
        metavar="FILE.json",
        help="write a trace for Perfetto and Chrome, and print nothing",
    )
    parser.add_argument(
        "--filter",
        type=_kinds,
        action="extend",
        default=[],
        metavar="KIND[,KIND...]",
        help=f"only these; may be repeated: {', '.join(get_args(What))}. Any "
        "other request of the kernel is a request, and shown only if that is named",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="one line of JSON for each record, for programs",
    )
    parser.set_defaults(run=run)


def _kinds(text: str) -> list[What]:
    # Imported here because no other subcommand needs it.
    from inaccfs.shim.trace import What

    known: tuple[What, ...] = get_args(What)
    found = text.split(",")
    if unknown := [word for word in found if word not in known]:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is not one of {', '.join(known)}"
        )
    return [kind for kind in known if kind in found]


def run(args: argparse.Namespace) -> int:
    """Trace until the user or the daemon ends it."""
    # Imported here because the import takes long.
    from inaccfs.client import wire
    from inaccfs.client.tracing import Trace

    if args.json and args.file is not None:
        raise OptionError("--json prints, and -o prints nothing: leave one of them out")
    path = wire.find_socket(args.mountpoint)
    with ExitStack() as stack:
        ending = stack.enter_context(Ending())
        try:
            trace = stack.enter_context(Trace(path, args.filter))
        except PermissionError:
            raise InaccfsError(
                f"{args.mountpoint}: only root and the mount's owner may trace it"
            ) from None
        if args.file is None:
            show: _Lines | _Picture = _Json(ending) if args.json else _Lines(ending)
        else:
            show = _Picture(stack.enter_context(_opened(args.file)), args.file)
        output.mention(f"inaccfs: tracing {args.mountpoint}: Ctrl-C ends it")
        try:
            _follow(trace, ending, show.add)
        finally:
            # Complete the file even if the daemon was killed.
            show.close(trace.lost)
    return 0


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    try:
        with open(create(path), "wb") as file:
            yield file
    except InaccfsError:
        # The end of the daemon is an OSError, too.
        raise
    except OSError as exc:
        raise InaccfsError(f"cannot write {path}: {exc.strerror}") from exc


def _follow(
    trace: Trace, ending: Ending, add: Callable[[list[TraceRecord], int], None]
) -> None:
    poller = select.poll()
    poller.register(trace, select.POLLIN)
    poller.register(ending, select.POLLIN)
    # POLLERR: the reader of our output has closed it, and we may never print again.
    poller.register(sys.stdout, 0)
    while not ending.asked and not trace.over:
        ready = dict(poller.poll())
        if sys.stdout.fileno() in ready:
            return
        if trace.fileno() in ready:
            # A signal that comes while a line is printed also asks for the end.
            with suppress(KeyboardInterrupt):
                add(trace.read(0), trace.lost)
    trace.stop()
    # Print the records from before the signal. A second Ctrl-C does not wait for them.
    with ending.interrupting(), suppress(KeyboardInterrupt):
        while not trace.over and (found := trace.read(_LAST_SECONDS)):
            add(found, trace.lost)


class _Lines:
    """Prints one line per record."""

    def __init__(self, ending: Ending) -> None:
        from inaccfs.tracing.lines import Lines

        self._ending: Final = ending
        self._line: Final = Lines().line
        self._lost = 0

    def add(self, records: list[TraceRecord], lost: int) -> None:
        """Print records, and how many were lost; *lost* is the total so far."""
        # A reader such as less(1) may block us.
        with self._ending.interrupting():
            if records:
                self._show(records)
            self._tell_lost(lost)

    def _show(self, records: list[TraceRecord]) -> None:
        output.say("\n".join(map(self._line, records)))

    def close(self, lost: int) -> None:
        """Print how many records were lost at the end."""
        self._tell_lost(lost)

    def _tell_lost(self, lost: int) -> None:
        from inaccfs.tracing import lines

        if lost > self._lost:
            output.say(lines.lost(lost - self._lost))
            self._lost = lost


class _Json(_Lines):
    """Prints one object of the protocol per record and line."""

    def _show(self, records: list[TraceRecord]) -> None:
        output.say_json(b"\n".join(map(msgspec.json.encode, records)))

    def _tell_lost(self, lost: int) -> None:
        if lost > self._lost:
            output.say_json(msgspec.json.encode({"lost": lost - self._lost}))
            self._lost = lost


class _Picture:
    """Writes a file for Perfetto."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        from inaccfs.tracing.chrome import Picture

        self._picture: Final = Picture(file.write)
        # A full disk, or a file of the mount itself, is known now, and not at the end.
        file.flush()
        self._file: Final = file
        self._path: Final = path
        self._count = 0

    def add(self, records: list[TraceRecord], lost: int) -> None:
        """Write records."""
        for record in records:
            self._picture.add(record)
        self._count += len(records)

    def close(self, lost: int) -> None:
        """Write the end, and print what the file has."""
        self._picture.close(lost, __version__)
        self._file.flush()
        missing = f", {lost} lost" if lost else ""
        records = "record" if self._count == 1 else "records"
        output.mention(
            f"inaccfs: {self._count} {records}{missing} in {self._path}: open it at "
            "ui.perfetto.dev"
        )
