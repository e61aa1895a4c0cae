"""inaccfs kvm: scripts, the demo, and stress, which must find injected bugs."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import StringIO
from random import Random
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.cli import main
from inaccfs.iommu.stress import Devices
from inaccfs.kvm import stress
from inaccfs.kvm.workload import Guest
from inaccfs.kvm.world import FILE_PAGES, World
from tests.mount import support
from tests.mount.support import ENVIRONMENT, PATIENCE, cli, complaint, inaccfs_command
from tests.unit import kvm_bugs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from inaccfs import Mount
    from inaccfs.client import Client
    from inaccfs.kvm.stress import Report

pytestmark = pytest.mark.fuse


def kvm(*arguments: str | Path, status: int = 0) -> tuple[str, str]:
    """Run `inaccfs kvm` in this process; return both outputs."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            found = main(["kvm", *map(str, arguments)])
        except SystemExit as exc:
            found = exc.code if isinstance(exc.code, int) else 1
    assert found == status, (out.getvalue(), err.getvalue())
    return out.getvalue(), err.getvalue()


@pytest.fixture
def script(scratch: Path) -> Callable[[str], Path]:
    """Writes a script, and returns its path."""

    def write(text: str) -> Path:
        path = scratch / "guest.py"
        path.write_text(dedent(text))
        return path

    return write


# --- run ----------------------------------------------------------------------


def test_a_script_has_a_vm_and_all_its_names(script: Callable[[str], Path]) -> None:
    path = script(
        """
        import os, sys
        from dataclasses import dataclass

        @dataclass
        class Page:
            gpa: int

        fd = shim.memfd_create("guest", size=1 << 20)
        vm.set_user_memory_region(0, 0, 1 << 20, private_fd=fd, flags=KVM_MEM_PRIVATE)
        vcpu = vm.create_vcpu()
        vcpu.write(Page(4096).gpa, b"secret")
        assert vcpu.read(4096, 6) == b"secret"
        try:
            vcpu.read(1 << 20, 1)
        except MemoryFaultExit as exc:
            print(exc)
        print(__name__, sys.argv[1:], mount.status().mountpoint == str(mount.path))
        """
    )
    out, err = kvm("run", path, "one", "--two")
    assert out.splitlines() == [
        "private access to 4096 bytes at gpa 0x100000",
        "__main__ ['one', '--two'] True",
    ]
    assert err == ""


def test_a_script_on_a_mount_that_is_there(
    mount: Mount, script: Callable[[str], Path]
) -> None:
    path = script("print(mount.path, mount.pid, mount.control, mount.status().files)")
    out, _ = kvm("run", "--mount", mount.path, path)
    assert out.split() == [str(mount.path), str(mount.pid), str(mount.control), "0"]
    assert support.is_mounted(mount.path)


def test_a_private_mount_has_options(script: Callable[[str], Path]) -> None:
    out, _ = kvm("run", "-o", "size=4m", script("print(mount.status().size)"))
    assert out == f"{4 << 20}\n"


@pytest.mark.parametrize(
    ("ending", "status", "expected"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit(True)", 1, ""),
        ("sys.exit('no luck')", 1, "no luck\n"),
    ],
)
def test_the_exit_status_is_the_scripts(
    mount: Mount, script: Callable[[str], Path], ending: str, status: int, expected: str
) -> None:
    path = script(f"import sys\n{ending}\n")
    _, err = kvm("run", "--mount", mount.path, path, status=status)
    assert err == expected


def test_a_traceback_begins_in_the_script(
    mount: Mount, script: Callable[[str], Path]
) -> None:
    path = script(
        """
        def guest():
            raise MemoryFaultExit(1, 4096, 4096)

        guest()
        """
    )
    _, err = kvm("run", "--mount", mount.path, path, status=1)
    lines = err.splitlines()
    assert lines[:3] == [
        "Traceback (most recent call last):",
        f'  File "{path}", line 5, in <module>',
        "    guest()",
    ]
    assert lines[-1].endswith(
        "MemoryFaultExit: private access to 4096 bytes at gpa 0x1000"
    )
    assert err.count('File "') == 2


@pytest.mark.parametrize("command", ["demo", "stress"])
def test_demo_and_stress_take_options_of_the_private_mount(command: str) -> None:
    """The mount is too small, which shows that it was made with these options."""
    message = complaint("kvm", command, "-o", "size=1m", "-o", "semantics=bind")
    assert re.search(r"lacks the \d+ MiB that this needs$", message)
    assert "size 'x'" in complaint("kvm", command, "-o", "size=x", status=2)
    _, err = kvm(command, "-o", "size=4m", "/mnt", status=2)
    assert "-o is for the private mount: leave it out, or MOUNTPOINT" in err


def test_an_escape_in_a_traceback_reaches_no_terminal(
    mount: Mount, script: Callable[[str], Path]
) -> None:
    path = script("raise ValueError('\\x1b[31m')")
    _, err = kvm("run", "--mount", mount.path, path, status=1)
    assert err.endswith("ValueError: \\x1b[31m\n")


def test_a_script_that_is_no_python_is_shown(
    mount: Mount, script: Callable[[str], Path]
) -> None:
    path = script("def guest(:\n")
    _, err = kvm("run", "--mount", mount.path, path, status=1)
    assert err.startswith(f'  File "{path}", line 1\n')
    assert "SyntaxError" in err


def test_an_error_that_a_user_can_fix_is_one_line(scratch: Path) -> None:
    script = scratch / "guest.py"
    message = complaint("kvm", "run", script)
    assert message == f"inaccfs: cannot read {script}: No such file or directory"
    script.touch()
    message = complaint("kvm", "run", "--mount", scratch, script)
    assert message.endswith("is not an inaccfs mount (inaccfs status lists them)")
    assert "cannot mount" not in complaint(
        *("kvm", "run", "-o", "size=x", script), status=2
    )
    _, err = kvm("run", "-o", "size=4m", "--mount", scratch, script, status=2)
    assert "-o is for the private mount" in err


# --- demo ---------------------------------------------------------------------

MAP = re.compile(r"^0x[0-9a-f]{9}  ([-.mMGsd+_ ]+)", re.MULTILINE)


def test_the_demo_shows_a_guests_memory(mount: Mount) -> None:
    out, err = kvm("demo", mount.path)
    assert err == ""
    assert "\x1b" not in out
    parts = out.split("\n== ")[1:]
    assert [part.splitlines()[0].split()[:2] for part in parts] == [
        ["A", "slot:"],
        ["The", "guest"],
        ["The", "guest"],
        ["The", "guest"],
        ["The", "host"],
        ["The", "guest"],
    ]
    first_rows = [MAP.findall(part)[0].replace(" ", "") for part in parts]
    assert set(first_rows[0]) == {"."}
    assert first_rows[1][3] in "mM"
    assert first_rows[2][8] == "s"
    assert first_rows[3] == "m" * 8 + "s" + "m" * 55
    assert first_rows[4][:9] == "mm....mms"
    assert first_rows[5][3] == "m"
    assert "exit: shared access to 4096 bytes at gpa 0x8000" in parts[2]
    assert "page   3: zeros: the page is a new one" in parts[5]
    assert """page 520: b"a guest's secret\"""" in parts[5]
    support.ask_until(lambda: mount.status().allocated_pages == 0)


def test_the_demo_goes_with_files_of_huge_pages() -> None:
    out, err = kvm("demo", "-o", "semantics=hugetlb-rfc")
    assert err == ""
    assert "The host punches pages 512 to 1023\n" in out
    assert """page   3: b"a guest's secret\"""" in out
    assert "page 520: zeros: the page is a new one" in out


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_are_for_terminals(mount: Mount, variables: dict[str, str]) -> None:
    out = on_terminal("demo", mount.path, variables=variables)
    assert ("\x1b[32m" in out) == (not variables)


def on_terminal(*arguments: str | Path, variables: dict[str, str]) -> str:
    """The output of `inaccfs kvm` if both outputs are a terminal."""
    ours, theirs = pty.openpty()
    environment = {
        name: text for name, text in ENVIRONMENT.items() if name != "NO_COLOR"
    }
    child = subprocess.Popen(
        inaccfs_command("kvm", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm", **variables},
    )
    os.close(theirs)
    found = bytearray()
    try:
        # EIO is the end of a terminal without users.
        while data := _read_terminal(ours):
            found += data
        assert child.wait(PATIENCE) == 0, bytes(found)
    finally:
        os.close(ours)
        child.kill()
        child.wait()
    return found.decode()


def _read_terminal(fd: int) -> bytes:
    assert support.wait_readable(fd)
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


@pytest.mark.parametrize("command", ["demo", "stress"])
def test_an_unsuitable_mount_is_reported(command: str) -> None:
    with support.mounted(size="1m") as small:
        message = complaint("kvm", command, small.path)
    assert re.search(r"lacks the \d+ MiB that this needs$", message)
    with support.mounted(options="no-guest-access") as closed:
        message = complaint("kvm", command, closed.path)
    assert "gives the memory of guests to nobody (--no-guest-access)" in message


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


def test_the_command_by_its_name() -> None:
    """Once it runs as a separate process."""
    output = cli("kvm", "stress", "--seconds", "0.1", "--seed", "1").stdout
    assert output.endswith("violations: none\n")
