"""inaccfs compare: runs one workload under several rules, and shows differences."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from inaccfs import children, syscalls, userfiles
from inaccfs.cli import kvmmount, mountoptions, output
from inaccfs.cli.progress import progress
from inaccfs.errors import InaccfsError, OptionError
from inaccfs.words import quoted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

# The widest cell of the table; --json has whole lines.
_WIDTH: Final = 40

# How long a run may take to take down its mount, on a busy machine.
_ENDING_SECONDS: Final = 5.0


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "compare",
        help="run one script under several semantics, and show what differs",
        description="Run a script as inaccfs kvm run does, once under each of the "
        "semantics, each time on a new private mount, and show what "
        "differs: the script's status and the lines that it prints, the "
        "counts of the shim and of the VM, and the time that it took. "
        "Status 1 if a mount cannot be made.",
    )
    parser.add_argument(
        "--semantics",
        action="append",
        default=[],
        metavar="NAME|FILE.py:CLASS",
        help="semantics to run it under; give two or more",
    )
    kvmmount.add_options(parser)
    parser.add_argument("--all", action="store_true", help="also show what is equal")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("script", metavar="SCRIPT.py")
    parser.add_argument("args", metavar="ARG", nargs="*")
    parser.set_defaults(run=run)


@dataclass(frozen=True, slots=True)
class Run:
    """The result of the script under one semantics."""

    semantics: str
    # The exit status of the script.
    status: int
    # What it printed on both streams.
    stdout: list[str]
    stderr: list[str]
    # From the start of the script to its end, in seconds.
    seconds: float
    # The counters of query-stats, and of `vm`; empty if the script has closed them.
    shim: dict[str, int] = field(default_factory=dict)
    kvm: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[str, object]]:
        """The rows of the table, in order, without the time."""
        yield "status", self.status
        for number, line in enumerate(self.stdout, 1):
            yield f"output {number}", line
        if self.stderr:
            # The last line of a traceback has the exception.
            yield "error", self.stderr[-1]
        for room, counts in (("shim", self.shim), ("kvm", self.kvm)):
            for name, count in counts.items():
                yield f"{room} {name}", count


def run(args: argparse.Namespace) -> int:
    """Run the script on each semantics, and show what differs."""
    from inaccfs.semantics import load

    if len(args.semantics) < 2:
        raise OptionError("give --semantics twice or more: there is nothing to compare")
    if not os.path.isfile(args.script):
        raise InaccfsError(f"cannot read {quoted(args.script)}: no such file")
    mountoptions.check(args.options)
    for name in args.semantics:
        # Do this before the first run, which may be long.
        load.load(name)
    runs: list[Run] = []
    with progress("comparing", len(args.semantics), ticks=True) as shown:
        for name in args.semantics:
            shown.update(len(runs), name)
            runs.append(_run(userfiles.absolute(name), args))
    if args.json:
        output.say_json(msgspec.json.encode(runs))
    else:
        labels = [userfiles.label(name) for name in args.semantics]
        output.say(_table(labels, runs, everything=args.all))
    return 0


def _run(semantics: str, args: argparse.Namespace) -> Run:
    """Run the script in a separate process, so that no run sees another's state."""
    reader, writer = os.pipe()
    options = [word for option in args.options for word in ("-o", option)]
    command = [
        *(sys.executable, "-m", "inaccfs", "kvm", "run", "--report-fd", str(writer)),
        *options,
        *("-o", f"semantics={semantics}", args.script, *args.args),
    ]
    with open(reader, "rb") as reports:
        try:
            status, printed, complaints = _ended(command, writer)
        finally:
            os.close(writer)
        report = reports.read()
    errors = _lines(complaints)
    if not report:
        # The script did not run, or did not reach its end.
        raise InaccfsError(
            errors[-1].removeprefix("inaccfs: ")
            if errors
            else f"{args.script} has ended its process on {semantics} "
            f"({_how_ended(status)}): use sys.exit()"
        )
    found = msgspec.json.decode(report)
    return Run(
        semantics,
        status,
        _lines(printed),
        errors,
        found["seconds"],
        found["shim"],
        found["kvm"],
    )


def _ended(command: Sequence[str], writer: int) -> tuple[int, bytes, bytes]:
    """Run a command to its end; its status, and what it has printed on both streams.

    If we are interrupted it ends first, for it has a mount to take down.
    """
    with children.starting("a run"):
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[writer],
            # Ctrl-C in a terminal interrupts us only. Otherwise the SIGTERM that we
            # send would interrupt the run again, while it takes down its mount.
            start_new_session=True,
        )
    with started as process, _stopping(process):
        try:
            printed, complaints = process.communicate()
        except BaseException:
            # A script that ignores SIGTERM would not end by it.
            if children.ignores(process.pid, signal.SIGTERM):
                children.kill(process)
            else:
                children.end(process, _ENDING_SECONDS)
            raise
    return process.returncode, printed, complaints


@contextmanager
def _stopping(run: subprocess.Popen[bytes]) -> Iterator[None]:
    """In a with block, Ctrl-Z stops a run, too, which goes on when we do.

    The terminal stops only our own process group. SIGTSTP would not stop the run: the
    kernel ignores it in a process group that no shell can continue.
    """

    def stop(number: int, _frame: object) -> None:
        _signal_group(run, signal.SIGSTOP)
        signal.signal(number, signal.SIG_DFL)
        try:
            # Returns when we continue; then Ctrl-C, say, may interrupt us.
            signal.raise_signal(number)
        finally:
            signal.signal(number, stop)
            _signal_group(run, signal.SIGCONT)

    before = signal.getsignal(signal.SIGTSTP)
    # A shell without job control may ignore it.
    if before is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _signal_group(run: subprocess.Popen[bytes], number: int) -> None:
    # Once its end has been waited for, its number may be another process group's.
    if run.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, number)


def _how_ended(status: int) -> str:
    return f"status {status}" if status >= 0 else f"signal {-status}"


def _lines(data: bytes) -> list[str]:
    return data.decode(errors="backslashreplace").splitlines()


def _table(labels: Sequence[str], runs: Sequence[Run], *, everything: bool) -> str:
    columns = [dict(one.rows()) for one in runs]
    # All names, in order of appearance; a run may lack some.
    names = dict.fromkeys(name for column in columns for name in column)
    # A script that failed in all runs is not a difference, but must be seen.
    always = ("status", "error") if any(one.status for one in runs) else ()
    rows = [["", *labels]]
    differs = everything
    for name in sorted(names, key=_place):
        cells = [column.get(name) for column in columns]
        differing = any(cell != cells[0] for cell in cells)
        differs |= differing
        if everything or differing or name in always:
            rows.append([name, *map(_cell, cells)])
    if not differs:
        rows.append(["nothing differs", *("" for _ in runs)])
    rows.append(["seconds", *(f"{one.seconds:.3f}" for one in runs)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _place(name: str) -> tuple[int, int]:
    """The sort key of a row: lines stay in order, even if only one run has them."""
    room, _, rest = name.partition(" ")
    order = ("status", "output", "error", "shim", "kvm")
    return order.index(room), int(rest) if room == "output" else 0


def _cell(value: object) -> str:
    if value is None:
        return "-"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def end_with_reader(fd: int) -> None:
    """End this process, also a script that hangs, when `compare` has been killed."""
    syscalls.die_with_parent()
    poller = select.poll()
    poller.register(fd, 0)
    if poller.poll(0):
        # It was killed before die_with_parent().
        raise KeyboardInterrupt


def write_report(
    fd: int, seconds: float, shim: Callable[[], object], kvm: Callable[[], object]
) -> None:
    """Write the report of this process's run for `compare`.

    *shim* and *kvm* return the counts.
    """
    report = {"seconds": seconds, "shim": _counts(shim), "kvm": _counts(kvm)}
    with open(fd, "wb", closefd=False) as file:
        file.write(msgspec.json.encode(report))


def _counts(ask: Callable[[], object]) -> dict[str, Any]:
    """The counts; empty if the script has closed the client or the VM."""
    try:
        found: dict[str, Any] = msgspec.to_builtins(ask())
    except OSError:
        return {}
    return found
