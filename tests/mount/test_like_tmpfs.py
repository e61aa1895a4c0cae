"""Where no rule says otherwise, a mount does what the tmpfs beside it does."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.mount import calls, support
from tests.mount.support import NOBODY, new_file, outcome, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs import Mount

pytestmark = [pytest.mark.fuse, support.needs_root]

AGES_AGO = 1_000_000_000 * 10**9
AS_NOBODY: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}


@pytest.fixture
def shared(point: Path, scratch: Path) -> Iterator[Mount]:
    """A mount that other users may enter, too."""
    scratch.chmod(0o755)
    with support.mounted(point, allow_other=True, mode=0o777) as mount:
        yield mount


# --- set-ID bits, sizes and times ---------------------------------------------------


def _expected(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The results of a tmpfs, except that there a mode may change without a new ctime.

    This happens for truncate(2) to the size that the file has.
    """
    for path, (result, mode, size, *times) in found.items():
        mode_before, _, call = path.partition(" ")
        changed = call == "truncate(0)" and int(mode, 8) & 0o7777 != int(mode_before, 8)
        found[path] = [
            result,
            mode,
            size,
            *times,
            *(["st_ctime_ns"] if changed else []),
        ]
    return found


@pytest.mark.parametrize(
    ("uid", "gid", "owner", "group"),
    [
        pytest.param(0, 0, 0, 0, id="root, its own"),
        pytest.param(0, 0, NOBODY, 34, id="root, another's"),
        pytest.param(NOBODY, NOBODY, NOBODY, NOBODY, id="the owner"),
        pytest.param(NOBODY, NOBODY, NOBODY, 34, id="the owner, not of the group"),
        pytest.param(NOBODY, NOBODY, 0, 0, id="a stranger"),
        pytest.param(NOBODY, 34, 0, 34, id="one of the group"),
    ],
)
def test_calls_change_the_attributes_that_they_change_on_a_tmpfs(
    shared: Mount, memory: Path, uid: int, gid: int, owner: int, group: int
) -> None:
    """Above all, set-ID bits and times must be the same."""
    program = sys.executable, "-m", "tests.mount.calls"
    found, wanted = (
        json.loads(run(*program, place, uid, gid, owner, group).stdout)
        for place in (shared.path, memory)
    )

    assert len(found) == len(calls.MODES) * len(calls.CALLS) + 4
    assert found == _expected(wanted)


# --- times of access ----------------------------------------------------------------


def _accessed(place: Path) -> list[str]:
    """The accesses that change a time of access."""
    found = []
    for age in ("older", "newer"):
        directory, link = place / f"d-{age}", place / f"l-{age}"
        directory.mkdir()
        link.symlink_to("nowhere")
        atime = AGES_AGO if age == "older" else 4 * AGES_AGO
        for path in (directory, link):
            os.utime(path, ns=(atime, AGES_AGO), follow_symlinks=False)
        os.listdir(directory)
        os.readlink(link)
        found += [
            path.name
            for path in (directory, link)
            if os.lstat(path).st_atime_ns != atime
        ]
    quiet = place / "quiet"
    quiet.mkdir()
    os.utime(quiet, ns=(AGES_AGO, AGES_AGO))
    fd = os.open(quiet, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    os.listdir(fd)
    os.close(fd)
    if os.stat(quiet).st_atime_ns != AGES_AGO:
        found.append("quiet")
    return found


@pytest.mark.parametrize(
    "options",
    [
        "relatime",
        "noatime",
        "nodiratime",
        "strictatime",
        "strictatime,nodiratime",
        "noatime,strictatime",
        "noatime,nodiratime",
    ],
)
def test_times_of_access_move_as_the_mount_options_have_it(
    scratch: Path, options: str
) -> None:
    with (
        support.tmpfs(scratch / "memory", f"size=64m,{options}") as memory,
        support.mounted(options=[options]) as mount,
    ):
        assert _accessed(mount.path) == _accessed(memory)


def test_times_of_access_are_relative_by_default(mount: Mount, memory: Path) -> None:
    assert _accessed(mount.path) == _accessed(memory) == ["d-older", "l-older"]


@pytest.mark.parametrize("options", ["noatime", "nodiratime"])
def test_directories_of_a_wrapped_directory_are_not_accessed_either(
    memory: Path, options: str
) -> None:
    with support.mounted(backing=memory, options=[options]) as mount:
        assert "d-older" not in _accessed(mount.path)


def test_o_noatime_has_an_effect_on_a_wrapped_directory_too(memory: Path) -> None:
    with support.mounted(backing=memory) as mount:
        assert _accessed(mount.path) == ["d-older", "l-older"]


def test_counting_files_is_no_access(mount: Mount) -> None:
    directory = mount.path / "d"
    directory.mkdir()
    os.utime(directory, ns=(AGES_AGO, AGES_AGO))
    support.status_of(mount.path)
    # The kernel caches the attributes of directories for a second.
    os.utime(directory, ns=(AGES_AGO, AGES_AGO + 1))
    (directory / "f").touch()
    support.status_of(mount.path)
    os.chmod(directory, 0o700)
    assert os.stat(directory).st_atime_ns == AGES_AGO


# --- the time of birth --------------------------------------------------------------


def _birth(path: Path) -> str:
    return run("stat", "-c", "%w", path).stdout


def test_everything_has_its_time_of_birth(mount: Mount, memory: Path) -> None:
    with support.mounted(backing=memory) as wrapped:
        for name in ("file", "directory", "link", "fifo"):
            for place in (mount.path, wrapped.path):
                path = place / name
                if name == "file":
                    new_file(path)
                elif name == "directory":
                    path.mkdir()
                elif name == "link":
                    path.symlink_to("nowhere")
                else:
                    os.mkfifo(path)
                born = _birth(path)
                assert born != "-\n", name
                os.utime(path, ns=(1, 1), follow_symlinks=False)
                assert _birth(path) == born
            assert _birth(wrapped.path / name) == _birth(memory / name)
        assert _birth(wrapped.path) == _birth(memory) != "-\n"


def test_a_stat_with_the_time_of_birth_has_all_that_one_without_has(
    mount: Mount,
) -> None:
    file = new_file(mount.path / "file", 16 * support.PAGE)
    run("fallocate", "-l", support.PAGE, file)
    os.chmod(file, 0o640)
    form = "%i %h %a %u %g %s %b %B %X %Y %Z %F %t:%T"

    born = run("stat", "-c", f"{form} %w", file).stdout.rpartition(":")[0]

    assert born.startswith(run("stat", "-c", form, file).stdout.strip()[:60])
    found = os.stat(file)
    assert born.split()[:7] == [
        str(found.st_ino), "1", "640", "0", "0",
        str(16 * support.PAGE), str(support.PAGE // 512),
    ]  # fmt: skip


def test_an_open_file_without_a_name_was_born_too(mount: Mount) -> None:
    file = new_file(mount.path / "file")
    with support.opened(file) as fd:
        born = _birth(file)
        file.unlink()
        ran = run("stat", "-L", "-c", "%w", f"/proc/self/fd/{fd}", pass_fds=[fd])
        assert ran.stdout == born


# --- extended attributes ------------------------------------------------------------


def test_trusted_attributes_are_listed_to_the_same_callers_as_on_a_tmpfs(
    shared: Mount, memory: Path
) -> None:
    memory.chmod(0o755)
    list_them = "import os, sys; print(sorted(os.listxattr(sys.argv[1])))"
    names_of = []
    for place in (shared.path, memory):
        file = new_file(place / "file")
        file.chmod(0o644)
        os.setxattr(file, "trusted.secret", b"1")
        os.setxattr(file, "security.label", b"1")
        if outcome(os.setxattr, memory, "user.x", b"1") == "ok":
            os.setxattr(file, "user.plain", b"1")
        listing = sys.executable, "-c", list_them, file
        names_of.append(
            [
                run(*listing).stdout,
                run(*listing, **AS_NOBODY).stdout,
                # Root without CAP_SYS_ADMIN, and root with it in another user
                # namespace.
                run("setpriv", "--bounding-set=-sys_admin", *listing).stdout,
                run("unshare", "--user", "--map-root-user", *listing).stdout,
            ]
        )

    assert names_of[0] == names_of[1]
    assert ["trusted" in names for names in names_of[0]] == [True, False, False, False]
    assert all("security.label" in names for names in names_of[0])
