"""inaccfs kvm probe: the simulated KVM beside the recorded rows, and beside /dev/kvm.

docs/fidelity.md lists the rows that differ, with their outcomes; these tests compare it
with both.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Final

import pytest

from inaccfs.cli import main
from inaccfs.kvm.probe import here, recorded, reference, simulated, table
from inaccfs.kvm.probe.rows import ROWS
from inaccfs.kvm.probe.table import Asked, compare
from tests.mount import support
from tests.mount.support import ENVIRONMENT, TOP, inaccfs_command

if TYPE_CHECKING:
    from inaccfs.kvm.probe.asking import Row
    from inaccfs.kvm.probe.protocol import Opponent

pytestmark = pytest.mark.fuse

# At most this many recorded rows may differ, without the file's own calls.
MOST: Final = 25


def probe(*arguments: str) -> tuple[dict[str, Any], int]:
    """What `inaccfs kvm probe --json` prints, and its status."""
    found = subprocess.run(
        inaccfs_command("kvm", "probe", "--json", *arguments),
        stdout=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    assert found.returncode < 2
    return json.loads(found.stdout), found.returncode


def differing(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The outcomes of the simulated KVM and of the other one, by the row's name."""
    return {
        row["name"]: tuple(row["outcomes"]) for row in found["rows"] if row["differs"]
    }


def listed(section: str) -> dict[str, tuple[str, str]]:
    """A table of docs/fidelity.md: by row the outcomes of the simulated KVM and KVM."""
    text = (TOP / "docs/fidelity.md").read_text()
    _, _, rest = text.partition(f"\n### {section}\n")
    lines = re.split(r"\n##", rest)[0].splitlines()
    rows: dict[str, tuple[str, str]] = {}
    for line in lines:
        if not line.startswith("| `"):
            continue
        names, simulated, kvm, why = (cell.strip() for cell in line[1:-1].split("|"))
        assert why, line
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in rows, f"{name} is listed twice"
            rows[name] = simulated, kvm
    assert rows, section
    return rows


def is_own_call(name: str) -> bool:
    """Whether a row is about the file's own system calls, which another table lists."""
    return name.startswith("file-")


def test_beside_the_recorded_rows_it_differs_as_listed() -> None:
    found, status = probe("--against", "recorded")
    assert found["kvms"] == ["simulated", "recorded"]
    assert found["semantics"] == "guest_memfd-6.12"
    assert len(found["rows"]) == len(ROWS)
    differences = differing(found)
    assert status == int(bool(differences))
    expected = listed("Beside Linux 6.12")
    # A mount without the seal refuses some of the file's own calls with other errnos.
    assert {
        name: both for name, both in differences.items() if not is_own_call(name)
    } == {name: both for name, both in expected.items() if not is_own_call(name)}
    assert {name for name in differences if is_own_call(name)} <= set(expected)
    assert len([name for name in differences if not is_own_call(name)]) <= MOST


class Erring:
    """A VM that takes attributes whose range ends at 2^64, which KVM refuses."""

    def __init__(self, vm: Any) -> None:
        self._vm: Final = vm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vm, name)

    def set_memory_attributes(
        self, gpa: int, size: int, attributes: int, flags: int = 0
    ) -> None:
        if gpa + size != 1 << 64:
            self._vm.set_memory_attributes(gpa, size, attributes, flags)


class ErringOpponent:
    """The simulated KVM with such VMs."""

    name = "erring"
    origin = ""

    def __init__(self, opponent: Opponent) -> None:
        self._opponent: Final = opponent

    def kvm(self) -> Any:
        kvm: Any = self._opponent.kvm()
        create = kvm.create_vm
        kvm.create_vm = lambda kind: Erring(create(kind))
        return kvm


def test_a_kvm_with_an_error_differs_in_that_row_alone() -> None:
    rows = [row for row in ROWS if row.group == "attribute"]
    with simulated.opponent("guest_memfd-6.12") as opponent:
        sides = [Asked(ErringOpponent(opponent)), Asked(opponent)]
        found = compare(sides, rows)
    assert [(each.row.name, *each.outcomes) for each in found if each.differs] == [
        ("attribute-ends-at-2-64", "ok", "EINVAL")
    ]


def test_a_guest_that_gets_little_cpu_time_is_not_taken_to_be_endless(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [row for row in ROWS if row.name == "guest-copy"]
    with simulated.opponent("guest_memfd-6.12") as opponent:
        monkeypatch.setattr(simulated, "_ENDLESS", 0.0)
        monkeypatch.setattr(simulated, "_TIMES", 1 << 20)
        (found,) = compare([Asked(opponent)], rows)
        assert found.outcomes == ["done; done; read 0x11223344; 4 cached"]
        # One that has had it is.
        monkeypatch.setattr(simulated, "_ENDLESS_CPU", 0.0)
        (found,) = compare([Asked(opponent)], rows)
        assert "no exit" in found.outcomes[0]


def test_beside_this_machines_kvm_it_differs_as_listed() -> None:
    try:
        here.find()
    except here.SkippedError as exc:
        pytest.skip(str(exc))
    if not os.uname().release.startswith("6.18."):
        pytest.skip("measured on Linux 6.18")
    found, _ = probe("--against", "/dev/kvm")
    assert found["kvms"] == ["simulated", "/dev/kvm"]
    assert set(differing(found)) <= set(listed("Beside /dev/kvm of Linux 6.18"))


# Under v8 its guest runs through all its memory, until a time limit ends it.
SLOW: Final = "exit-execute-plain-slot"


def test_alone_nothing_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first rows of each group, for people."""
    quick = [row for row in ROWS if row.name != SLOW]
    some = [row for _, rows in groupby(quick, _group) for row in islice(rows, 3)]
    monkeypatch.setattr(table, "compare", partial(compare, rows=some))
    assert main(["kvm", "probe"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0].split() == ["simulated"]
    assert re.search(f"^{len(some)} rows$", printed.out, re.MULTILINE)
    assert "region-right" in printed.out
    assert "hangs" not in printed.out


def _group(row: Row) -> str:
    return row.group


# --- errors ---------------------------------------------------------------------------


def complaint(*arguments: str) -> str:
    return support.complaint("kvm", "probe", *arguments, status=2)


def test_another_opponent_is_refused() -> None:
    assert "give /dev/kvm, recorded or emulated" in complaint("--against", "x")


def test_other_semantics_are_refused() -> None:
    assert "nonsense" in complaint("--semantics", "nonsense")


def test_without_a_kernel_it_says_how_to_build_one(
    monkeypatch: pytest.MonkeyPatch, scratch: os.PathLike[str]
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", os.fspath(scratch))
    printed = complaint("--against", "emulated")
    assert "inaccfs kvm live build" in printed or "apt-get install" in printed


def test_ctrl_c_ends_it_and_its_mount() -> None:
    with subprocess.Popen(
        inaccfs_command("kvm", "probe"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    ) as process:
        support.ask_until(lambda: _has_children(process.pid))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def _has_children(pid: int) -> bool:
    path = f"/proc/{pid}/task/{pid}/children"
    with open(path) as file:
        return bool(file.read().split())


# --- the page of rows -----------------------------------------------------------------


def test_the_page_of_rows_is_up_to_date() -> None:
    """Otherwise: python -m inaccfs.kvm.probe.reference docs/kvm-rows.md."""
    assert (TOP / "docs/kvm-rows.md").read_text() == reference.render()


def test_what_is_listed_exists() -> None:
    names = {row.name for row in ROWS}
    for section in ("Beside Linux 6.12", "Beside /dev/kvm of Linux 6.18"):
        assert set(listed(section)) <= names


def test_the_recording_says_where_it_is_from() -> None:
    printed = recorded.read()
    text = (TOP / "docs/kvm-rows.md").read_text()
    assert f"Linux {printed.kernel} ({printed.source})" in text
