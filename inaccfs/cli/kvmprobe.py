"""inaccfs kvm probe: the simulated KVM, row by row, beside a real one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from inaccfs.cli import mountoptions, output, terminal
from inaccfs.cli.statuses import TROUBLE
from inaccfs.errors import OptionError
from inaccfs.kvmcalls import DEVICE
from inaccfs.words import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.kvm.probe.table import Result, Side

_RECORDED: Final = "recorded"
_EMULATED: Final = "emulated"
AGAINST: Final = (DEVICE, _RECORDED, _EMULATED)
"""What --against may be."""

_DESCRIPTION = """\
Ask a KVM some 350 questions about private memory: what each ioctl refuses, what a guest
finds, with what a vCPU exits, what is left when files and VMs are closed. Without
--against only the simulated KVM is asked, on a private mount.

--against
  /dev/kvm   the KVM of this machine
  recorded   what Linux 6.12 has answered; needs no KVM
  emulated   Linux 6.12 with private memory, under QEMU: inaccfs kvm live build, once
"""

_STATUS = """\
exit status: 0; with --against 1 if rows differ; 2 if there is trouble. Where there is
no /dev/kvm to ask, the reason is printed, and the status is 0.
"""


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "probe",
        help="compare the simulated KVM with a real one, row by row",
        description=_DESCRIPTION,
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--against", metavar="KVM", help="compare: rows that differ are marked with !"
    )
    parser.add_argument(
        "--semantics",
        metavar="NAME|FILE.py:CLASS",
        help="the version to simulate (default: the one that --against has, or v8)",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run, parser=parser, failed=TROUBLE)


def run(args: argparse.Namespace) -> int:
    """Run the rows; status 1 if they differ, 2 if they could not run."""
    # Imported here because no other subcommand needs it.
    from inaccfs.kvm.probe import here, simulated, table

    try:
        if args.semantics is not None:
            mountoptions.check([f"semantics={args.semantics}"])
        opponent, semantics = _opponent(args.against)
        with simulated.opponent(args.semantics or semantics) as ours:
            sides: list[Side] = [table.Asked(ours)]
            if opponent is not None:
                sides.append(opponent)
            results = table.compare(sides)
    except here.SkippedError as exc:
        return _skipped(args, str(exc))
    _show(args, args.semantics or semantics, sides, results)
    return int(any(result.differs for result in results))


def _opponent(against: str | None) -> tuple[Side | None, str | None]:
    """The KVM to compare with, and its semantics."""
    from inaccfs.kvm.probe import here, recorded, table

    if against is None:
        return None, None
    if against == DEVICE:
        found = here.find()
        return table.Asked(found.opponent), found.semantics
    if against == _RECORDED:
        rows = recorded.read()
        return rows, here.version_of(rows.kernel)
    if against == _EMULATED:
        from inaccfs.kvm.live.emulated import Emulated

        # The emulated machine uses this machine's Python.
        here.check_architecture()
        emulated = Emulated()
        return emulated, here.version_of(emulated.kernel.release)
    raise OptionError(
        f"--against {quoted(against)}: give {DEVICE}, {_RECORDED} or {_EMULATED}"
    )


def _skipped(args: argparse.Namespace, reason: str) -> int:
    from inaccfs.kvm.probe import report

    if args.json:
        output.say_json(report.as_json({"skipped": reason}, [], []).encode())
    else:
        output.say(f"skipped: {reason}")
    return 0


def _show(
    args: argparse.Namespace,
    semantics: str | None,
    sides: Sequence[Side],
    results: Sequence[Result],
) -> None:
    from inaccfs.kvm.probe import report

    if args.json:
        about = {"semantics": semantics}
        output.say_json(report.as_json(about, sides, results).encode())
    else:
        output.say(report.table(sides, results, terminal.width() or None))
