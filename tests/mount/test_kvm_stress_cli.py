"""inaccfs kvm stress, which must find injected bugs."""

from __future__ import annotations

import json
import os
import re
from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.iommu.stress import Devices
from inaccfs.kvm import stress
from inaccfs.kvm.workload import Guest
from inaccfs.kvm.world import FILE_PAGES, World
from tests.mount import support
from tests.mount.kvm_commands import kvm, on_terminal
from tests.mount.support import PATIENCE
from tests.unit import kvm_bugs

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs import Mount
    from inaccfs.client import Client
    from inaccfs.kvm.stress import Report

pytestmark = pytest.mark.fuse


# --- stress -------------------------------------------------------------------


def test_stress_reports_to_programs() -> None:
    out, _ = kvm("stress", "--seconds", "0.3", "--seed", "7", "--json")
    found = json.loads(out)
    assert found["plan"] == {"seconds": 0.3, "vcpus": 4, "punchers": 2, "seed": 7}
    assert (found["semantics"], found["order"]) == ("v8", "after")
    assert found["violations"] == []
    assert found["stats"]["faults"] > 0
    assert found["stale_uses"] == found["counts"].get("stale", 0)


def test_stress_finds_nothing_wrong_and_leaves_nothing(mount: Mount) -> None:
    out, err = kvm("stress", "--seconds", "0.6", "--seed", "7", mount.path)
    assert err == ""
    lines = out.splitlines()
    assert re.fullmatch(
        r"\d+\.\d s in \d+ rounds: 4 vCPUs, 2 punchers, seed 7", lines[0]
    )
    assert int(re.split(r"\s+", lines[1])[1].replace(",", "")) > 0
    assert lines[-3] == "semantics  v8: invalidates after removal"
    assert re.fullmatch(
        r"stale uses .*: \d+ seen \(the semantics' own race\)", lines[-2]
    )
    assert lines[-1] == "violations: none"
    support.ask_until(lambda: mount.status().allocated_pages == 0)


def test_a_private_mount_and_no_punchers_and_one_guest() -> None:
    out, _ = kvm("stress", "--seconds", "0.1", "--vcpus", "1", "--punchers", "0")
    assert "1 vCPUs, 0 punchers" in out
    assert "violations: none" in out


def test_a_bar_on_a_terminal(mount: Mount) -> None:
    out = on_terminal("stress", "--seconds", "2.5", mount.path, variables={})
    bars = re.findall(
        r"\r\[(#*)(-*)\] stress, \d of 2.5, [\d,]+ accesses, [\d,]+ punches, \d s", out
    )
    # How many are drawn depends on the machine's load.
    assert bars
    assert {len(done + rest) for done, rest in bars} == {24}
    lengths = [len(done) for done, _ in bars]
    assert lengths == sorted(lengths)
    assert "\r\x1b[K" in out


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (("--seconds", "0"), "'0' is not a number of seconds"),
        (("--seconds", "long"), "'long' is not a number of seconds"),
        (("--vcpus", "0"), "'0' is not a whole number from 1 to 256"),
        (("--punchers", "-1"), "'-1' is not a whole number from 0 to 256"),
        (("--seed", "x"), "'x' is not a whole number from 0 to "),
    ],
)
def test_numbers_are_checked(option: tuple[str, str], expected: str) -> None:
    _, err = kvm("stress", *option, status=2)
    assert expected in err


# --- bugs that stress must find -----------------------------------------------


# The message of stress for each bug.
FOUND = {
    "zap": r"gfn 0x\w+ is mapped to frame 0x\w+ at level \d, but its page ",
    "retry": r"gfn 0x\w+ is mapped to frame 0x\w+ at level \d, but its page ",
    "range": r"gfn 0x\w+ is mapped to frame 0x\w+ at level \d, but its page ",
    "arithmetic": r"file page \d+: read .*, which |^gfn 0x\w+ is mapped to ",
    "discard": r"file page \d+: read .*, which was replaced by zeros before",
    "references": r"file page \d+: \d+ references to \d+ frames .* not put",
    "puts": r"the client logged: put-pfn: ",
    "callback": r"INVALIDATE raised: RuntimeError\('a bug'\)",
    "unregister": r"\d+ notifiers (for \d+ slots|are left)",
    "counts": r"\[.*\] mappings were made and not zapped, \[.*\] are there",
    "end": r"vCPU \d.* did not come to an end",
    "waiting": r"vCPU \d.* did not come to an end",
    "guest": r"(vCPU|puncher) \d has failed:\nTraceback",
}


@pytest.mark.parametrize("bug", kvm_bugs.BUGS)
def test_stress_finds_a_broken_part(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # This does not use `mount`, because a bug may leave threads and references.
    with (
        support.mounted() as mount,
        inaccfs.connect(mount.control) as shim,
        monkeypatch.context() as patch,
    ):
        if bug in ("end", "waiting"):
            # The threads of these bugs do not end.
            patch.setattr(stress, "_STOP_SECONDS", 0.2)
        if bug in ("references", "unregister"):
            # What these bugs leave does not go.
            patch.setattr(stress, "_GONE_SECONDS", 0.5)
        kvm_bugs.BUGS[bug](patch)
        report = run_stress(shim)
    found = report.violations
    assert any(re.search(FOUND[bug], each) for each in found), found


def run_stress(shim: Client) -> Report:
    # It ends with the first violation; only a miss takes all the time.
    plan = stress.Plan(seconds=PATIENCE / 4, seed=1)
    return stress.run(shim, plan, lambda *_: None)


def test_a_bracketed_order_has_no_stale_uses() -> None:
    with (
        support.mounted(semantics="bind") as mount,
        inaccfs.connect(mount.control) as shim,
    ):
        report = stress.run(shim, stress.Plan(seconds=2, seed=1), lambda *_: None)
    assert report.counts["punches"] > 0
    assert (report.stale_uses, report.violations) == (0, [])


@pytest.mark.parametrize(
    "semantics", ["in-place-v8", "in-place-next", "hugetlb-rfc", "live-update"]
)
def test_stress_converts_in_place_and_freezes(semantics: str) -> None:
    with (
        support.mounted(semantics=semantics) as mount,
        inaccfs.connect(mount.control) as shim,
    ):
        plan = stress.Plan(seconds=1, seed=1)
        report = stress.run(shim, plan, lambda *_: None, others=Devices)
        # The daemon's count, of those that the rules allow: of whole huge pages.
        assert shim.query_stats().punches > 0
    assert report.violations == []
    assert report.counts["dma"] > 0
    assert report.counts["freezes" if semantics == "live-update" else "conversions"] > 0


@pytest.mark.parametrize(
    "rule",
    [
        'content = "zeroed"',
        'content = "refused"',
        'pinned_punch = "refused"',
        'mmap = "refused"',
        'mmap, content = "refused", "zeroed"',
    ],
)
def test_stress_knows_what_rules_of_ones_own_do_to_pages(
    rule: str, tmp_path: Path
) -> None:
    """Zeros after a conversion are no lost write, and a refusal is no failure."""
    own = tmp_path / "own.py"
    own.write_text(
        f"from inaccfs.semantics import InPlaceV8\nclass Own(InPlaceV8):\n    {rule}\n"
    )
    with (
        support.mounted(semantics=f"{own}:Own") as mount,
        inaccfs.connect(mount.control) as shim,
    ):
        plan = stress.Plan(seconds=1, seed=3)
        report = stress.run(shim, plan, lambda *_: None, others=Devices)
    assert report.violations == []
    assert report.counts["conversions"] > 0


def test_no_time_at_all_is_enough_to_find_nothing(mount: Mount) -> None:
    with inaccfs.connect(mount.control) as shim:
        report = stress.run(shim, stress.Plan(seconds=0), lambda *_: None)
    assert (report.rounds, report.violations) == (0, [])


def test_violations_are_reported_and_the_status_is_1(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    kvm_bugs.BUGS["references"](monkeypatch)
    monkeypatch.setattr(stress, "_GONE_SECONDS", 0.5)
    out, _ = kvm("stress", "--seconds", "1", mount.path, status=1)
    assert re.search(r"^violations: \d+\n  file page \d+: ", out, re.MULTILINE)
    assert re.search(r"^  \.\.\. and \d+ more$", out, re.MULTILINE)


class Reading(World):
    """While the window is open, a guest reads a page that will be zapped."""

    def __init__(self, shim: Client, fd: int) -> None:
        super().__init__(shim, fd)
        self.window = self.add_file()
        self.guest = Guest(0, self, Random(0))
        # The page that will be punched.
        self.page: int | None = None

    def _hook(self, point: str, start: int, end: int) -> None:
        super()._hook(point, start, end)
        if point == "invalidate:begin" and start == self.page:
            self.guest.read(self.window, start, private=True)


def test_the_race_of_the_seed_is_counted_and_is_no_violation(mount: Mount) -> None:
    with inaccfs.connect(mount.control) as shim, ExitStack() as stack:
        fd = shim.memfd_create("race", size=FILE_PAGES * support.PAGE)
        stack.callback(os.close, fd)
        world = Reading(shim, fd)
        stack.callback(world.vm.close)
        # The world itself punches the page of the first fault.
        world.guest.write(world.window, 0, private=True)
        for page in range(3):
            world.guest.write(world.window, page, private=True)
            world.page = page
            world.punch(world.window, page, 1)
            assert world.guest.counts["stale"] == page + 1
    assert world.guest.counts["stale"] == 3
    assert not world.violations
