"""inaccfs kvm: scripts and the demo."""

from __future__ import annotations

import re
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from tests.mount import support
from tests.mount.kvm_commands import kvm, on_terminal
from tests.mount.support import cli, complaint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from inaccfs import Mount

pytestmark = pytest.mark.fuse


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
        "kvm", "run", "-o", "size=x", script, status=2
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


@pytest.mark.parametrize("command", ["demo", "stress"])
def test_an_unsuitable_mount_is_reported(command: str) -> None:
    with support.mounted(size="1m") as small:
        message = complaint("kvm", command, small.path)
    assert re.search(r"lacks the \d+ MiB that this needs$", message)
    with support.mounted(options="no-guest-access") as closed:
        message = complaint("kvm", command, closed.path)
    assert "gives the memory of guests to nobody (--no-guest-access)" in message


def test_the_command_by_its_name() -> None:
    """Once it runs as a separate process."""
    output = cli("kvm", "stress", "--seconds", "0.1", "--seed", "1").stdout
    assert output.endswith("violations: none\n")
