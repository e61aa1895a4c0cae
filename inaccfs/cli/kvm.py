"""inaccfs kvm: the simulated KVM, in a script, in a demo, or under stress."""

from __future__ import annotations

import argparse
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

from inaccfs.cli import (
    kvmlive,
    kvmmount,
    kvmprobe,
    kvmstress,
    output,
    terminal,
    units,
)
from inaccfs.cli.compare import end_with_reader, write_report
from inaccfs.errors import InaccfsError


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand, and its subcommands."""
    parser = commands.add_parser(
        "kvm",
        help="run a script with a simulated VM, watch one, or stress one",
        description="Use the simulated KVM as a client of a mount. If no mount is "
        "given, the command makes a private one, and removes it at the "
        "end.",
    )
    own = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(own)
    demo = own.add_parser(
        "demo",
        help="show a guest fault in, convert, and lose memory",
        description="Show a guest fault its memory in, convert a page, lose pages to a "
        "punch and fault them in again, with maps of its pages. No guest is booted.",
    )
    kvmmount.add_options(demo)
    demo.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    demo.set_defaults(run=_demo, parser=demo)
    kvmstress.add_parser(own)
    kvmprobe.add_parser(own)
    kvmlive.add_parser(own)


def _add_run(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "run",
        help="run a Python script with a simulated VM",
        description="Run a Python script with these names: vm (a VM without "
        "memslots), shim (the VM's client), mount, and all names of "
        "inaccfs.kvm.",
    )
    parser.add_argument("--mount", metavar="DIR", help="use the mount at DIR")
    kvmmount.add_options(parser)
    parser.add_argument("--report-fd", type=units.fd_of, help=argparse.SUPPRESS)
    parser.add_argument("script", metavar="SCRIPT.py")
    parser.add_argument("args", metavar="ARG", nargs=argparse.REMAINDER)
    parser.set_defaults(run=_run, parser=parser)


# --- run ------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    """Run a script; return its exit status."""
    kvmmount.check_options(args, args.mount, "--mount")
    try:
        source = Path(args.script).read_bytes()
    except OSError as exc:
        raise InaccfsError(f"cannot read {args.script}: {exc.strerror}") from None
    from inaccfs import kvm

    if args.report_fd is not None:
        end_with_reader(args.report_fd)
    with (
        kvmmount.mount_of(args.mount, args.options) as (mount, shim),
        kvm.VM(shim) as vm,
    ):
        names = {name: getattr(kvm, name) for name in kvm.__all__}
        names |= {"vm": vm, "shim": shim, "mount": mount}
        started = time.monotonic()
        status = _execute(args.script, source, names, args.args)
        if args.report_fd is not None:
            seconds = time.monotonic() - started
            write_report(args.report_fd, seconds, shim.query_stats, lambda: vm.stats)
        return status


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
        return output.exit_status(exc)
    except output.OutputError:
        raise
    except Exception as exc:
        output.mention_traceback(exc)
        return 1
    finally:
        sys.argv, sys.path, sys.modules["__main__"] = before
    return 0


# --- demo -----------------------------------------------------------------------------


def _demo(args: argparse.Namespace) -> int:
    from inaccfs.kvm import demo

    with kvmmount.roomy_mount_of(args, demo.PAGES) as shim:
        demo.run(shim, output.say_coloured, colour=terminal.has_colours())
    return 0
