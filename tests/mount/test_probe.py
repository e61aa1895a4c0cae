"""inaccfs probe: on mounts, as a command, and compared with the kernel's guest_memfd.

docs/fidelity.md lists every difference; these tests compare it with both.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from inaccfs.probe import table
from inaccfs.probe.outcomes import was_tried
from tests.mount import support
from tests.mount.namespaces import private_namespace
from tests.mount.nobody import Nobody, need_user_namespace, setup_script
from tests.mount.support import NOBODY, PAGE, TOP, background, cli, run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inaccfs import Mount

pytestmark = pytest.mark.fuse

MEASURED_ON: Final = "6.18."


def probe(*arguments: str | Path, status: int | None = 0) -> dict[str, Any]:
    """What `inaccfs probe --json` prints."""
    ran = run(*support.inaccfs_command("probe", "--json", *arguments), status=status)
    if ran.returncode == 2:
        pytest.skip(ran.stderr.strip())
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def outcomes(found: dict[str, Any]) -> dict[str, str]:
    """The outcomes by the names of the rows."""
    return {row["name"]: row["outcome"] for row in found["rows"]}


def complaint(*arguments: str | Path) -> str:
    """The error message of the probe, which is one line; the status is 2."""
    ran = cli("probe", *arguments, status=2)
    assert ran.stdout == ""
    assert ran.stderr.startswith("inaccfs: ")
    assert ran.stderr.count("\n") == 1
    return ran.stderr


# --- a mount --------------------------------------------------------------------------


def test_nothing_reaches_a_byte_of_a_mount(mount: Mount) -> None:
    """The rows show the rules of v8, mm/memfd_inaccessible.c as posted."""
    found = probe(mount.path)
    results = outcomes(found)
    assert_v8(results)
    reaching = [
        row["name"]
        for row in found["rows"]
        if row["group"] in ("read", "write", "mmap", "a mapping", "exec")
        and row["outcome"].startswith("ok")
    ]
    if mount.status().sealed:
        assert reaching == ["read 0 bytes", "write 0 bytes"]
    else:
        assert "read" not in reaching
    assert results["read"] == results["write"] == "EINVAL"
    assert "hangs" not in results.values()
    # The probe has removed its files.
    assert os.listdir(mount.path) == []
    support.wait_until_unused(mount.path)
    assert mount.status().files == 0


def assert_v8(found: dict[str, str]) -> None:
    """A size is final, EPERM, and only punches have to be aligned."""
    assert found["first size"] == f"ok, size {4 * PAGE}"
    assert found["first size unaligned"] == "EINVAL"
    assert found["ftruncate the same size"] == "EPERM"
    assert found["ftruncate unaligned"] == "EPERM"
    assert found["open /proc/self/fd O_TRUNC"] == "EPERM"
    assert found["fallocate mode 0 at the end"] == f"ok, size {5 * PAGE}"
    assert found["fallocate KEEP_SIZE unaligned offset"] == "ok"
    assert found["fallocate PUNCH_HOLE|KEEP_SIZE"] == "ok"
    assert found["fallocate PUNCH_HOLE|KEEP_SIZE unaligned offset"] == "EINVAL"
    assert found["fallocate PUNCH_HOLE|KEEP_SIZE unaligned length"] == "EINVAL"
    assert found["fstat st_blocks"] == f"ok {2 * PAGE} bytes"
    assert found["fstat st_blocks after a punch"] == f"ok {PAGE} bytes"
    if was_tried(found["io_uring ftruncate"]):
        assert found["io_uring ftruncate"] == "EPERM"


def test_a_file_of_a_mount_can_be_named_once(mount: Mount) -> None:
    """Its size is final, so the second time the file is not empty."""
    file = mount.path / "file"
    file.touch()
    first = outcomes(probe(file))
    assert first["first size"] == f"ok, size {4 * PAGE}"
    assert first["ftruncate larger"] == "EPERM"
    size = file.stat().st_size
    assert size >= 4 * PAGE
    assert f"has {size} bytes" in complaint(file)
    second = outcomes(probe(file, "--force"))
    assert second["first size"] == "not here: has a size already"
    assert second["fallocate PUNCH_HOLE|KEEP_SIZE past the end"] == "ok"
    assert second["read"] == "EINVAL"


@support.needs_root
def test_a_tmpfs_is_a_memfd_without_seals(memory: Path) -> None:
    found = probe(memory, "--against", "memfd", status=1)
    differing = {row["name"] for row in found["rows"] if row["differs"]}
    assert {row["group"] for row in found["rows"] if row["differs"]} >= {"seals"}
    assert differing <= {
        # Another file system.
        *("copy_file_range to a memfd", "copy_file_range from a memfd"),
        # It is a mount and not a file system of the kernel; the file was opened by
        # name.
        *("F_SETFL O_DIRECT", "F_SETLEASE F_WRLCK", "F_GET_SEALS"),
        *(name for name in outcomes(found) if name.startswith("F_ADD_SEALS")),
    }
    assert os.listdir(memory) == []


# --- the command ----------------------------------------------------------------------


def test_differences_are_status_1_and_none_are_0(mount: Mount) -> None:
    ran = cli("probe", mount.path, "--against", mount.path)
    assert ran.stderr == ""
    assert re.search(r"^\d+ rows, 0 differ", ran.stdout, re.MULTILINE)
    assert not re.search("^!", ran.stdout, re.MULTILINE)

    ran = cli("probe", "memfd", "--against", mount.path, status=1)
    assert re.search(
        r"^! ftruncate larger +ok, size 32768 +EPERM$", ran.stdout, re.MULTILINE
    )
    assert re.search(r"^  lseek SEEK_SET +ok 0 +\S", ran.stdout, re.MULTILINE)
    names = [row.name for row in table.ROWS]
    assert all(f"\n  {name} " in ran.stdout.replace("!", " ") for name in names)


def test_trouble_is_status_2(mount: Mount, scratch: Path) -> None:
    missing = scratch / "missing"
    assert f"{missing} does not exist: name an empty file" in complaint(missing)
    assert "does not exist" in complaint("memfd", "--against", missing)
    assert "usage: inaccfs probe" in cli("probe", status=2).stderr
    help_text = cli("probe", "--help").stdout
    assert "exit status: 0; with --against 1 if there are differences; 2" in help_text
    # A user must be warned before data is lost.
    assert "loses what is in it" in help_text


@support.needs_root
def test_a_user_without_write_permission_gets_an_error(scratch: Path) -> None:
    (scratch / "file").touch(mode=0o444)
    os.chmod(scratch, 0o755)
    for name, expected in (
        ("file", "for reading and writing: Permission denied"),
        ("", "cannot make a file: Permission denied"),
    ):
        result = run(
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            sys.executable,
            "-c",
            FIND,
            scratch / name,
            status=None,
        )
        if "ModuleNotFoundError" in result.stderr or result.returncode == 126:
            pytest.skip("this Python is root's own")
        assert expected in result.stdout


FIND = """
import sys
from inaccfs.probe import naming, targets
try:
    naming.find(sys.argv[1])
except targets.ProbeError as exc:
    print(exc)
"""


# A shorter time limit for each row.
LIMIT: Final = "from inaccfs.probe import children; children.LIMIT = {}"


def test_a_daemon_that_is_stopped_is_no_hang(mount: Mount) -> None:
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        program = support.program(LIMIT.format(0.2))
        ran = run(sys.executable, "-c", program, "probe", mount.path, status=2)
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    assert f"{mount.path} does not answer within 0.2 seconds" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_dead_daemon_is_reported() -> None:
    with support.doomed() as mount:
        support.kill(mount)
        assert "Transport endpoint is not connected" in complaint(mount.path)


def test_output_without_a_reader_is_no_bug() -> None:
    command = " ".join(support.inaccfs_command("probe", "memfd"))
    ran = run("bash", "-c", f"{command} | head -1", status=None)
    assert ran.stderr == ""


def test_json_has_what_the_documentation_says() -> None:
    found = probe("memfd")
    text = (TOP / "docs/probe.md").read_text()
    _, _, text = text.partition("\n## JSON\n")
    documented = re.findall(r"^\| `([a-z_.\[\]]+)` \|", text, re.MULTILINE)
    keys = {
        *found,
        *(f"target.{key}" for key in found["target"]),
        *(f"rows[].{key}" for key in found["rows"][0]),
    }
    assert set(documented) == keys
    assert found["against"] is None


# --- guest_memfd ----------------------------------------------------------------------


def listed(section: str) -> dict[str, tuple[str, str]]:
    """A table of docs/fidelity.md: by row the outcomes of guest_memfd and the mount."""
    text = (TOP / "docs/fidelity.md").read_text()
    _, _, rest = text.partition(f"\n## {section}\n")
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if "|" in line]
    assert lines[:2] == [
        "| rows | guest_memfd | the mount | why |",
        "|---|---|---|---|",
    ]
    found: dict[str, tuple[str, str]] = {}
    for line in lines[2:]:
        # A | of a name is written as \\| in a table.
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        names, guest_memfd, mount, why = (cell.replace("\\|", "|") for cell in cells)
        assert why, line
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in found, f"{name} is listed twice"
            found[name] = (guest_memfd, mount)
    return found


# The sections that apply to each mount, by the rules of both.
SECTIONS: Final = {
    "guest_memfd": ("On every mount", "With the seal"),
    "guest_memfd:mmap": (
        *("On every mount", "With the seal"),
        "With GUEST_MEMFD_FLAG_MMAP",
    ),
    "guest_memfd:mmap+init_shared": (
        *("On every mount", "With the seal"),
        "With GUEST_MEMFD_FLAG_INIT_SHARED, too",
    ),
}
UNSEALED: Final = ("On every mount", "Without the seal")


def all_listed(sections: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Several tables, none of which has a row of another."""
    found: dict[str, tuple[str, str]] = {}
    for section in sections:
        more = listed(section)
        assert more
        assert not set(found) & set(more)
        found |= more
    return found


@pytest.mark.parametrize("sections", [*SECTIONS.values(), UNSEALED])
def test_each_listed_row_exists(sections: tuple[str, ...]) -> None:
    assert set(all_listed(sections)) <= {row.name for row in table.ROWS}


def assert_as_listed(
    found: dict[str, tuple[str, str]], expected: dict[str, tuple[str, str]]
) -> None:
    """The differences that were *found* are those that the documentation lists."""
    unlisted = {name: both for name, both in found.items() if name not in expected}
    assert unlisted == {}
    if os.uname().release.startswith(MEASURED_ON):
        assert found == expected


def differences(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        row["name"]: (row["outcome"], row["against"])
        for row in found["rows"]
        if row["differs"]
    }


@support.needs_root
@pytest.mark.parametrize("name", SECTIONS)
def test_guest_memfd_semantics_differ_only_as_listed(
    point: Path, scratch: Path, name: str
) -> None:
    with background(point, scratch, "--semantics", name):
        try:
            if "needs" in (mmap_state := support.status_of(point).mmap):
                pytest.skip(f"mmap: {mmap_state}")
            found = probe(name, "--against", point, status=None)
        finally:
            cli("umount", point)
    assert_as_listed(differences(found), all_listed(SECTIONS[name]))


@support.needs_root
def test_without_the_seal_they_differ_only_as_listed() -> None:
    """The mount is a user's, the guest_memfd is root's: privileges differ, too."""
    guest_memfd = outcomes(probe("guest_memfd"))
    # A row that hangs is not waited for long.
    program = support.program(LIMIT.format(1))
    with tempfile.TemporaryDirectory(prefix="inaccfs-") as path:
        home = Path(path)
        home.chmod(0o755)
        with private_namespace(setup_script(home)) as namespace:
            user = Nobody(namespace, home)
            need_user_namespace(user)
            with user.mounted("--semantics", "guest_memfd"):
                ran = run(*user.python("-c", program, "probe", "--json", user.point))
    mount = outcomes(json.loads(ran.stdout))
    found = {
        name: (guest_memfd[name], mount[name])
        for name in guest_memfd
        if guest_memfd[name] != mount[name]
        and was_tried(guest_memfd[name])
        and was_tried(mount[name])
    }
    expected = all_listed(UNSEALED)
    for name in ("FIBMAP", "open_by_handle_at O_RDWR"):
        expected[name] = (expected[name][0], "EPERM")
    assert_as_listed(found, expected)
