"""Run all rows on /dev/kvm, and write the outcomes to a file as one JSON object.

It runs in the emulated machine: python -m inaccfs.kvm.probe.inside FILE
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from inaccfs.kvm.probe import assembler, table
from inaccfs.kvm.probe.real import RealOpponent
from inaccfs.kvm.probe.rows import ROWS


def main() -> None:
    """Run all rows, and write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=assembler.MODES, default="real")
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    opponent = RealOpponent(assembler.MODES[args.mode])
    # Something to see on the console if a row ends the machine.
    side = table.Asked(opponent, begins=lambda row: print(row.name, flush=True))  # noqa: T201
    answers = side.answers(ROWS)
    found = {
        "kernel": os.uname().release,
        "machine": os.uname().machine,
        "mode": args.mode,
        "rows": {row.name: answer for row, answer in zip(ROWS, answers, strict=True)},
    }
    args.file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
