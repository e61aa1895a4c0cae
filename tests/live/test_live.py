"""The emulated machine: it has the recorded outcomes, and its selftests pass.

tests/run has no emulated machine for these tests; they need INACCFS_LIVE=1, which
tests/live/run sets.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from inaccfs.kvm.live import boot
from inaccfs.kvm.live.emulated import Emulated
from inaccfs.kvm.live.places import LiveError
from inaccfs.kvm.probe import recorded
from inaccfs.kvm.probe.asking import ABSENT
from inaccfs.kvm.probe.rows import ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.skipif(
    not os.environ.get("INACCFS_LIVE"), reason="takes minutes: tests/live/run"
)

# kselftest.h
_SKIPPED: Final = 4


@pytest.fixture(scope="module")
def emulated() -> Emulated:
    try:
        return Emulated()
    except LiveError as exc:
        pytest.skip(str(exc))


def test_the_recorded_rows_are_what_the_kernel_says(emulated: Emulated) -> None:
    """A race has an allowed outcome; every other row has the recorded one."""
    recording = recorded.read()
    if recording.source != emulated.kernel.source:
        pytest.skip(f"recorded of {recording.source}, here is {emulated.kernel.source}")
    pairs = zip(ROWS, recording.answers(ROWS), emulated.answers(ROWS), strict=True)
    assert [
        (row.name, old.outcome, now.outcome)
        for row, old, now in pairs
        if old.outcome != now.outcome and now.outcome not in row.allowed
    ] == []


def test_guests_in_long_mode_find_the_same(emulated: Emulated) -> None:
    """At CPL 3 a guest may not make hypercalls, and its page tables fault, too."""
    recording = recorded.read().answers(ROWS)
    user = Emulated("user").answers(ROWS)
    differ = {
        row.name
        for row, one, other in zip(ROWS, recording, user, strict=True)
        if one.outcome != other.outcome
        and not {one.outcome, other.outcome} <= row.allowed
        and ABSENT not in (one.outcome, other.outcome)
    }
    assert differ <= {"exit-hypercall", "exit-hypercall-refused"}


def test_the_kernels_own_selftests_pass(emulated: Emulated) -> None:
    folder = emulated.kernel.selftests
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*_test"))
    assert names
    # Each selftest writes its status to a file.
    lines = [
        f"{shlex.quote(f'{folder}/{name}')} >/mnt/{index}.said 2>&1; "
        f"echo $? >/mnt/{index}.status"
        for index, name in enumerate(names)
    ]
    run = boot.run(emulated.kernel, "\n".join(lines))
    ended = {name: _ending(run.files, index) for index, name in enumerate(names)}
    assert {name: end for name, end in ended.items() if end} == {}


def _ending(files: Mapping[str, bytes], index: int) -> str:
    """The failure of a selftest; "" if it passed."""
    status = int(files[f"{index}.status"])
    if status in (0, _SKIPPED):
        return ""
    return f"status {status}: {files[f'{index}.said'].decode()[-500:]}"


def test_the_command_compares_with_it() -> None:
    """The status is 1 if rows differ; another test has the allowed differences."""
    found = subprocess.run(
        [
            *(sys.executable, "-m", "inaccfs", "kvm", "probe"),
            *("--against", "emulated", "--json"),
        ],
        stdout=subprocess.PIPE,
        check=False,
        timeout=400,
    )
    rows = json.loads(found.stdout)["rows"]
    assert found.returncode == int(any(row["differs"] for row in rows))
    assert len(rows) == len(ROWS)
