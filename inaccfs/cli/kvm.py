"""inaccfs kvm: the simulated KVM, for scripts, for people to look at, under stress."""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import sys
import threading
import traceback
import types
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from inaccfs import launch
from inaccfs.cli import kvmlive, kvmprobe, mountoptions, output
from inaccfs.cli.statuses import INTERRUPTED
from inaccfs.errors import InaccfsError, MountError
from inaccfs.streams import printable_lines
from inaccfs.words import natural, quoted

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator, Sequence

    from inaccfs.client import Client
    from inaccfs.kvm.stress import Report
    from inaccfs.status import Status

_BAR: Final = 24

# The limit of threads of each kind: more would only wait for each other.
_MOST_THREADS: Final = 256


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand, and its subcommands."""
    parser = commands.add_parser(
        "kvm",
        help="a simulated VM: run a script with one, see one, put one under stress",
        description="The simulated KVM as a client of a mount. Without a mount to use "
        "it makes a private one, which it removes at its end.",
    )
    own = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(own)
    demo = own.add_parser(
        "demo",
        help="show a guest fault in, convert, and lose memory",
        description="Show a guest fault its memory in, convert a page, lose pages to a "
        "punch and fault them in again, with maps of its pages. No guest is booted.",
    )
    _add_options(demo)
    demo.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    demo.set_defaults(run=_demo, parser=demo)
    _add_stress(own)
    kvmprobe.add_parser(own)
    kvmlive.add_parser(own)


def _add_run(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "run",
        help="run a Python script with a VM at hand",
        description="Runs a Python script that has vm (a VM without slots), shim (the "
        "client that it is made with), mount, and all names of inaccfs.kvm.",
    )
    parser.add_argument("--mount", metavar="DIR", help="use the mount at DIR")
    _add_options(parser)
    parser.add_argument("script", metavar="SCRIPT.py")
    parser.add_argument("args", metavar="ARG", nargs=argparse.REMAINDER)
    parser.set_defaults(run=_run, parser=parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("-o", "--options"),
        metavar="OPT[,OPT]",
        action="append",
        default=[],
        help="of the private mount, as inaccfs mount -o has them: size=1g,huge=always",
    )


def _add_stress(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "stress",
        help="vCPUs and punches at random, and then every invariant",
        description="vCPUs write and read stamps at random, while other threads punch, "
        "convert, allocate, and make and delete slots. What was read, what is mapped, "
        "references, notifiers and counts are checked. Status 1 if anything is wrong.",
    )
    for name, metavar, kind, default, text in (
        ("--seconds", "N", _seconds, 10.0, "how long; default 10"),
        ("--vcpus", "M", _number(1, _MOST_THREADS), 4, "default 4"),
        (
            "--punchers",
            "K",
            _number(0, _MOST_THREADS),
            2,
            "threads that take memory away; default 2",
        ),
        ("--seed", "S", _number(0), None, "what each thread does; default: any"),
    ):
        parser.add_argument(
            name, metavar=metavar, type=kind, default=default, help=text
        )
    _add_options(parser)
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    parser.set_defaults(run=_stress, parser=parser)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{quoted(text)} is not a number of seconds")
    return value


def _number(least: int, most: float = math.inf) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = natural(text)
        if value is None or value < least:
            raise argparse.ArgumentTypeError(f"{quoted(text)}: give {least} or more")
        if value > most:
            raise argparse.ArgumentTypeError(f"{value}: give {most} or less")
        return value

    return number


# --- the mount ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Given:
    """An existing mount: like an `inaccfs.Mount`, but without its process."""

    path: Path
    pid: int
    control: Path
    log: Path | None

    def status(self) -> Status:
        """The present status of the mount."""
        return launch.read_status(str(self.path))


@contextmanager
def _mount(
    mountpoint: str | None, options: Sequence[str] = ()
) -> Iterator[tuple[_Given | launch.Mount, Client]]:
    """The mount at *mountpoint*, or a private one with *options*; and a client."""
    from inaccfs.client import connect

    if mountpoint is None:
        # Check the options before a daemon is started with them.
        mountoptions.check(options)
        with launch.mounted(options=options) as own, connect(own.control) as shim:
            yield own, shim
        return
    status = launch.read_status(mountpoint)
    with connect(mountpoint) as shim:
        yield (
            _Given(
                Path(status.mountpoint),
                status.pid,
                Path(status.control or ""),
                None if status.log is None else Path(status.log),
            ),
            shim,
        )


@contextmanager
def _roomy_mount(args: argparse.Namespace, pages: int) -> Iterator[Client]:
    """A client of a mount that has room for *pages* of 4 KiB, and allows get-memory.

    A private mount has huge pages if the kernel has them and the options do not differ.
    """
    _check_options(args, args.mountpoint, "MOUNTPOINT")
    words = ",".join(args.options).split(",")
    # A wrapped directory has the size that it has.
    wraps = any(word.startswith("backing=") for word in words)
    huge = ["huge=always"] if _has_huge_pages() and not wraps else []
    # The last of equal options counts.
    with _mount(args.mountpoint, [*huge, *args.options]) as (mount, shim):
        found = os.statvfs(mount.path)
        if found.f_bavail * found.f_frsize < pages << 12:
            raise MountError(f"{mount.path} lacks the {pages >> 8} MiB that this needs")
        fd = shim.memfd_create("kvm-probe", size=found.f_frsize)
        try:
            with shim.file(fd) as file:
                os.close(file.get_memory())
        except PermissionError:
            raise MountError(
                f"{mount.path} gives the memory of guests to nobody "
                "(--no-guest-access), or not to you: use another mount"
            ) from None
        finally:
            os.close(fd)
        yield shim


def _check_options(args: argparse.Namespace, mountpoint: str | None, it: str) -> None:
    if mountpoint is not None and args.options:
        args.parser.error(f"-o is for the private mount: leave it out, or {it}")


def _has_huge_pages() -> bool:
    return os.geteuid() == 0 and os.path.isdir("/sys/kernel/mm/transparent_hugepage")


# --- run ------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    """Run a script; return its exit status."""
    _check_options(args, args.mount, "--mount")
    try:
        source = Path(args.script).read_bytes()
    except OSError as exc:
        raise InaccfsError(f"cannot read {args.script}: {exc.strerror}") from None
    from inaccfs import kvm

    with _mount(args.mount, args.options) as (mount, shim), kvm.VM(shim) as vm:
        names = {name: getattr(kvm, name) for name in kvm.__all__}
        names |= {"vm": vm, "shim": shim, "mount": mount}
        return _execute(args.script, source, names, args.args)


def _execute(
    script: str, source: bytes, names: dict[str, object], arguments: list[str]
) -> int:
    """Run *source* as Python would run the script."""
    module = types.ModuleType("__main__")
    vars(module).update(names, __file__=script, __builtins__=__builtins__)
    before = sys.argv, sys.path, sys.modules["__main__"]
    sys.argv = [script, *arguments]
    sys.path = [os.path.dirname(os.path.abspath(script)), *sys.path]
    sys.modules["__main__"] = module
    try:
        with output.lent():
            exec(compile(source, script, "exec"), vars(module))
    except SystemExit as exc:
        return _status(exc.code)
    except output.OutputError:
        raise
    except Exception as exc:
        # Begin the traceback at the script: our own frames are of no use to its author.
        own = exc.__traceback__.tb_next if exc.__traceback__ else None
        told = "".join(traceback.format_exception(exc.with_traceback(own)))
        output.mention(printable_lines(told), end="")
        return 1
    finally:
        sys.argv, sys.path, sys.modules["__main__"] = before
    return 0


def _status(code: object) -> int:
    """The exit status of `sys.exit(code)`."""
    if code is None or isinstance(code, int):
        return code or 0
    output.mention(str(code))
    return 1


# --- demo -----------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> int:
    from inaccfs.kvm import demo

    # See no-color.org.
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    with _roomy_mount(args, demo.PAGES) as shim:
        demo.run(shim, output.say_coloured, colour=colour)
    return 0


# --- stress ---------------------------------------------------------------------------


def _stress(args: argparse.Namespace) -> int:
    from inaccfs.kvm import stress, world

    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    plan = stress.Plan(args.seconds, args.vcpus, args.punchers, seed)
    try:
        # Set from here on, so that even an early Ctrl-C gives a report.
        with (
            _interruptible() as interrupted,
            _roomy_mount(args, world.FILE_PAGES) as shim,
        ):
            progress = _Progress(plan.seconds)
            try:
                report = stress.run(shim, plan, progress, interrupted.is_set)
            finally:
                progress.clear()
    except KeyboardInterrupt:
        output.complain(f"interrupted again: seed {seed}, and nothing was checked")
        raise
    output.say(_summary(report))
    if report.violations:
        return 1
    return INTERRUPTED if report.interrupted else 0


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second raises KeyboardInterrupt."""
    event = threading.Event()

    def first(_number: int, _frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT)
    # SIGINT may be ignored, or have another handler.
    ours = before is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, first)
    try:
        yield event
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)


class _Progress:
    """A bar on the terminal, if standard error is one."""

    def __init__(self, seconds: float) -> None:
        self._seconds: Final = seconds
        self._shown: Final = sys.stderr.isatty()

    def __call__(self, now: float, counts: Counter[str]) -> None:
        if not self._shown:
            return
        done = min(round(now / self._seconds * _BAR), _BAR)
        bar = "#" * done + "-" * (_BAR - done)
        text = (
            f"[{bar}] {now:.0f}/{self._seconds:g} s, {counts['accesses']:,} accesses, "
            f"{counts['punches']:,} punches"
        )
        columns = shutil.get_terminal_size().columns
        output.mention(f"\r{text[: columns - 1]}\x1b[K", end="")

    def clear(self) -> None:
        """Erase the bar."""
        if self._shown:
            output.mention("\r\x1b[K", end="")


def _deeds(counts: Counter[str]) -> str:
    told = {
        "punches": "punches",
        "conversions": "conversions",
        "allocations": "allocations",
        "prefaults": "pre-faults",
        "slots": "slots made or deleted",
    }
    return ", ".join(f"{counts[name]:,} {what}" for name, what in told.items())


def _summary(report: Report) -> str:
    plan, counts, stats = report.plan, report.counts, report.stats
    work = f"{plan.vcpus} vCPUs, {plan.punchers} punchers, seed {plan.seed}"
    stopped = ", interrupted" if report.interrupted else ""
    lines = [
        f"{report.seconds:.1f} s in {report.rounds} rounds{stopped}: {work}",
        f"guests     {counts['accesses']:,} accesses, {counts['exits']:,} exits",
        f"host       {_deeds(counts)}",
    ]
    if stats is not None:
        lines.append(
            f"KVM        {stats.faults:,} faults, {stats.retries:,} retries, "
            f"{stats.spurious:,} spurious, {stats.invalidations:,} invalidations; "
            f"mapped {stats.installed.pages_4k:,} x 4 KiB, "
            f"{stats.installed.pages_2m:,} x 2 MiB"
        )
    race = "the semantics' own race" if report.order == "after" else "not expected"
    lines += [
        f"semantics  {report.semantics}: invalidates {report.order} removal",
        f"stale uses in the window: {report.stale_uses:,} seen ({race})",
        f"violations: {len(report.violations) or 'none'}",
        *(f"  {violation}" for violation in report.violations),
    ]
    return "\n".join(lines)
