"""The recorded outcomes of a kernel, which are a file of this package."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from inaccfs.kvm.probe.asking import ABSENT
from inaccfs.kvm.probe.table import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from inaccfs.kvm.probe.asking import Row

_FILE: Final = "recorded.json"


class Recorded:
    """The recorded outcomes, and the kernel that they are from."""

    name = "recorded"

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.kernel: Final[str] = found["kernel"]
        self.source: Final[str] = found["source"]
        """The source package, with its version."""
        self.origin = f"Linux {self.kernel}, {self.source}"
        self._outcomes: Final[dict[str, str]] = found["rows"]
        self._absent: Final[dict[str, str]] = found["absent"]

    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        """The recorded outcomes; a row that was not recorded is absent."""
        return [self._answer(row.name) for row in rows]

    def _answer(self, name: str) -> Answer:
        outcome = self._outcomes.get(name)
        if outcome is None:
            return Answer(ABSENT, self._absent.get(name, "recorded before this row"))
        return Answer(outcome)


def read() -> Recorded:
    """Read the recorded outcomes of this package."""
    file = resources.files(__package__).joinpath(_FILE)
    return Recorded(json.loads(file.read_bytes()))


def write(
    path: Path,
    rows: Sequence[Row],
    answers: Sequence[Answer],
    about: Mapping[str, str],
) -> None:
    """Write such a file, one row per line; *about* has its `kernel` and `source`."""
    pairs = [(row.name, answer) for row, answer in zip(rows, answers, strict=True)]
    found = {
        **about,
        "rows": {name: each.outcome for name, each in pairs if each.outcome != ABSENT},
        "absent": {name: each.why for name, each in pairs if each.outcome == ABSENT},
    }
    path.write_text(json.dumps(found, indent=1) + "\n")
