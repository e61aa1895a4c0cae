"""Writes the page of all rows: python -m inaccfs.kvm.probe.reference PAGE."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from inaccfs.kvm.probe import recorded
from inaccfs.kvm.probe.asking import ABSENT
from inaccfs.kvm.probe.rows import ROWS

_HEAD = """\
# The rows of `inaccfs kvm probe`

Made by `python -m inaccfs.kvm.probe.reference docs/kvm-rows.md`; a test compares
it with the rows and the recording. [live-kvm.md](live-kvm.md) says how they are asked
and what the words mean.

Recorded: Linux {kernel} ({source}), a VM of type KVM_X86_SW_PROTECTED_VM. Of a race the
table has what may be seen. `absent` is what this kernel does not have.
"""


def render() -> str:
    """The page."""
    found = recorded.read()
    outcomes = {
        row.name: answer.outcome
        for row, answer in zip(ROWS, found.answers(ROWS), strict=True)
    }
    lines = [_HEAD.format(kernel=found.kernel, source=found.source)]
    for group, rows in groupby(ROWS, key=lambda row: row.group):
        lines += [
            f"## {group}",
            "",
            "| row | what is done | Linux 6.12 |",
            "|---|---|---|",
        ]
        for row in rows:
            seen = sorted(row.allowed) or [outcomes[row.name]]
            if outcomes[row.name] == ABSENT:
                seen = [ABSENT]
            cells = (f"`{row.name}`", row.sentence, " or ".join(seen))
            lines.append(f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render())
