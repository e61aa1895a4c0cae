"""`inaccfs map` and query-map: a file's pages, as they really are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import inaccfs
from inaccfs.client import aio
from inaccfs.semantics import VERSIONS
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH, fallocate
from tests.mount.support import (
    ENVIRONMENT,
    MIB,
    NOBODY,
    PAGE,
    PATIENCE,
    cli,
    complaint,
    doomed,
    inaccfs_command,
    kill,
    mounted,
    needs_root,
    new_file,
    opened,
    run,
)
from tests.mount.terminals import needs_tmux, terminal

if TYPE_CHECKING:
    from inaccfs import Mount

pytestmark = [pytest.mark.fuse, pytest.mark.semantics("v10")]

TIB = 1 << 40


def drawn(path: Path, **environment: str) -> list[str]:
    env = {**ENVIRONMENT, **environment}
    return run(*inaccfs_command("map", path), env=env).stdout.splitlines()


def extents(path: Path) -> list[tuple[int, int, str]]:
    found = json.loads(cli("map", path, "--json").stdout)
    return [(one["offset"], one["count"], one["memory"]) for one in found["extents"]]


def test_a_small_file_has_a_cell_for_each_page(mount: Mount) -> None:
    path = new_file(mount.path / "small", 4 * PAGE)
    with opened(path) as fd:
        # Allocated, and never accessed.
        fallocate(fd, 0, PAGE, PAGE)
    assert drawn(path) == [
        f"{path}: 16 KiB, 4 pages of 4 KiB; a cell is one",
        "0x000000000  .a..",
        "",
        "a allocated (1)   . hole (3)",
    ]
    assert extents(path) == [(0, 1, "hole"), (1, 1, "allocated"), (2, 2, "hole")]


def test_a_file_of_a_tebibyte_takes_no_longer(mount: Mount) -> None:
    path = new_file(mount.path / "big", TIB)
    with opened(path) as fd:
        fallocate(fd, 0, TIB // 2, MIB)
        fallocate(fd, 0, TIB - PAGE, PAGE)
    first, pages = TIB // 2 // PAGE, MIB // PAGE
    rest = TIB // PAGE - 1 - first - pages
    assert extents(path) == [
        (0, first, "hole"),
        (first, pages, "allocated"),
        (first + pages, rest, "hole"),
        (TIB // PAGE - 1, 1, "allocated"),
    ]
    title, *rows = drawn(path)
    assert title.endswith("1.0 TiB, 268,435,456 pages of 4 KiB; a cell is 2 GiB")
    assert sum(row.count("+") for row in rows if row.startswith("0x")) == 2
    counts = f"a allocated ({pages + 1})   . hole ({first + rest:,})"
    assert rows[-1] == f"{counts}   + several of these"


def test_what_peers_have_and_what_has_failed_is_shown(mount: Mount) -> None:
    path = new_file(mount.path / "f", 16 * PAGE)
    with (
        inaccfs.connect(mount.path) as shim,
        opened(path) as fd,
        shim.file(fd) as memory,
    ):
        memory.get_pfns(4, 4)
        memory.put_pfns(memory.get_pfns(2, 2))
        memory.memory_failure(5)
        # Punched: the reference is to the old page.
        fallocate(fd, PUNCH, 6 * PAGE, PAGE)
        assert drawn(path)[1] == "0x000000000  ..ffr!.r........"
        states = {one.offset: one for one in memory.query_map()}
    assert states[4].referenced
    assert not states[2].referenced
    assert states[2].fetched
    assert states[5].poisoned
    assert states[6].memory == "hole"


def test_an_invalidation_that_is_under_way_is_shown(mount: Mount) -> None:
    path = new_file(mount.path / "f", 8 * PAGE)
    shown: list[list[str]] = []
    with (
        inaccfs.connect(mount.path) as shim,
        opened(path) as fd,
        shim.file(fd) as memory,
        memory.register_notifier(lambda start, end: shown.append(drawn(path))),
    ):
        fallocate(fd, PUNCH, 2 * PAGE, 3 * PAGE)
    (during,) = shown
    assert during[1] == "0x000000000  ..iii..."
    assert drawn(path)[1] == "0x000000000  ........"


def test_many_extents_come_in_pages(mount: Mount) -> None:
    path = new_file(mount.path / "f", 6000 * PAGE)
    with (
        inaccfs.connect(mount.path) as shim,
        opened(path) as fd,
        shim.file(fd) as memory,
    ):
        for page in range(0, 6000, 2):
            fallocate(fd, FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE)
        found = memory.query_map()
    assert [(one.offset, one.count) for one in found] == [
        (page, 1) for page in range(6000)
    ]
    assert [one.memory for one in found[:2]] == ["allocated", "hole"]


async def test_both_faces_have_it(mount: Mount) -> None:
    new_file(mount.path / "f", 2 * PAGE)
    async with aio.connect(mount.path) as shim, await shim.file("/f") as memory:
        (extent,) = await memory.query_map()
    assert (extent.offset, extent.count, extent.memory) == (0, 2, "hole")


def test_memory_past_the_end_is_counted(mount: Mount) -> None:
    path = new_file(mount.path / "f")
    with opened(path) as fd:
        fallocate(fd, FALLOC_FL_KEEP_SIZE, MIB, 2 * PAGE)
    assert drawn(path)[-1] == "2 more allocated past the end of the file"


@needs_root
def test_who_may_use_no_paths_passes_an_fd() -> None:
    options = ["allow_other", f"allow-uid={NOBODY}"]
    with mounted(options=options, mode=0o755) as mount:
        mount.path.parent.chmod(0o755)
        mount.control.parent.chmod(0o755)
        path = new_file(mount.path / "f", PAGE)
        other = new_file(mount.path / "g", PAGE)
        path.chmod(0o666)
        words: dict[str, Any] = {"user": NOBODY, "group": NOBODY}
        assert "hole (1)" in run(*inaccfs_command("map", path), **words).stdout
        refused = run(*inaccfs_command("map", other), status=1, **words)
        assert refused.stderr == f"inaccfs: {other}: Permission denied\n"


def test_what_is_no_file_of_a_mount_is_one_line(mount: Mount, scratch: Path) -> None:
    elsewhere = new_file(scratch / "x")
    assert "is not in an inaccfs mount" in complaint("map", elsewhere)
    assert "No such file" in complaint("map", scratch / "missing")
    assert "No such file" in complaint("map", "/proc/self/fd/1000000")
    assert "the path of the file is empty" in complaint("map", "", status=2)
    assert "No such file" in complaint("map", mount.path / "missing")
    assert "Is a directory" in complaint("map", mount.path)
    (mount.path / "out").symlink_to(new_file(scratch / "theirs"))
    assert "no file of this mount" in complaint("map", mount.path / "out")


def test_a_link_to_a_file_is_as_good(mount: Mount, scratch: Path) -> None:
    path = new_file(mount.path / "f", PAGE)
    (mount.path / "d").mkdir()
    for link in (mount.path / "d" / "in", scratch / "from outside"):
        link.symlink_to(path)
        assert drawn(link)[1] == "0x000000000  ."


def test_a_memfd_has_a_name_in_proc(mount: Mount) -> None:
    with inaccfs.connect(mount.path) as shim:
        fd = shim.memfd_create("guest", size=3 * PAGE)
    try:
        fallocate(fd, 0, PAGE, PAGE)
        path = Path(f"/proc/{os.getpid()}/fd/{fd}")
        assert drawn(path)[1] == "0x000000000  .a."
    finally:
        os.close(fd)


def test_a_directory_that_is_mounted_elsewhere(mount: Mount, scratch: Path) -> None:
    """A bind mount: its files have other paths from its root."""
    (mount.path / "d").mkdir()
    new_file(mount.path / "d" / "f", 2 * PAGE)
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    run("mount", "--bind", mount.path / "d", elsewhere)
    try:
        assert drawn(elsewhere / "f")[1] == "0x000000000  .."
    finally:
        run("umount", elsewhere)


def test_on_a_mount_that_is_read_only_it_goes_by_path() -> None:
    with mounted(options="ro") as mount:
        assert "No such file" in complaint("map", mount.path / "f")


def test_the_mount_of_a_dead_daemon_is_one_line() -> None:
    with doomed() as mount:
        kill(mount)
        assert "its daemon is dead" in complaint("map", mount.path / "f")


def test_watched_without_a_terminal_it_is_printed_when_it_changes(
    mount: Mount,
) -> None:
    path = new_file(mount.path / "f", 2 * PAGE)
    watching = subprocess.Popen(
        inaccfs_command("map", path, "--watch"),
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    )
    assert watching.stdout is not None
    lines = [watching.stdout.readline() for _ in range(4)]
    assert lines[1] == "0x000000000  ..\n"
    with opened(path) as fd:
        fallocate(fd, 0, PAGE, PAGE)
    lines = [watching.stdout.readline() for _ in range(5)]
    assert lines[2] == "0x000000000  .a\n"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(PATIENCE) == 0
    watching.stdout.close()


def test_a_mount_is_not_busy_because_it_is_watched(scratch: Path) -> None:
    with mounted() as mount:
        path = new_file(mount.path / "f", 2 * PAGE)
        watching = subprocess.Popen(
            inaccfs_command("map", path, "--watch"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
        )
        assert watching.stdout is not None
        watching.stdout.readline()
        cli("umount", mount.path)
        _, err = watching.communicate(timeout=PATIENCE)
    assert watching.returncode == 1
    assert len(err.splitlines()) == 1
    assert "the daemon has ended" in err


# --- terminals --------------------------------------------------------------------


@needs_tmux
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 60)])
def test_it_fits_any_terminal_and_follows_it(
    mount: Mount, scratch: Path, columns: int, lines: int, locale: str
) -> None:
    path = new_file(mount.path / "f", 64 * MIB)
    with opened(path) as fd:
        for page in range(0, 1024, 3):
            fallocate(fd, FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE)
    command = inaccfs_command("map", path, "--watch")
    with terminal(
        scratch, *command, columns=columns, lines=lines, LC_ALL=locale
    ) as made:
        seen = made.wait(lambda screen: "several of these" in screen[-1])
        assert "64 MiB" in seen[0]
        assert len(seen) <= lines
        # No line has been wrapped.
        assert all(line.startswith(("0x", " ")) for line in seen[1:-2])
        assert any("\x1b[" in line for line in made.screen(colours=True))
        made.resize(50, 20)
        made.wait(lambda screen: max(map(len, screen)) <= 50 and len(screen) <= 20)
        with opened(path) as fd:
            fallocate(fd, PUNCH, 0, 64 * MIB)
        made.wait(lambda screen: screen[-1] == ". hole (16,384)")
        made.type("C-c")
        # The old screen is shown again.
        assert made.wait(lambda screen: screen[-1].startswith("ended"))[-1] == "ended 0"


@needs_tmux
def test_a_narrow_terminal_loses_no_character(mount: Mount, scratch: Path) -> None:
    path = new_file(mount.path / "f", TIB)
    with opened(path) as fd:
        fallocate(fd, 0, TIB // 2, MIB)
    command = inaccfs_command("map", path, "--watch")
    # What is drawn goes by the terminal, and not by the environment.
    with terminal(scratch, *command, columns=20, lines=24, COLUMNS="80") as made:
        seen = made.wait(lambda screen: screen[-1] == "+ several of these")
        # In a line that is as wide as the terminal, too.
        assert ". hole (268,435,200)" in seen
        words = " ".join(seen)
        assert "1.0 TiB, 268,435,456 pages of 4 KiB; a cell is 16 GiB" in words
        rows = [line.split()[1] for line in seen if line.startswith("0x")]
        assert max(map(len, rows)) == 5
        assert "+" in "".join(rows)
        made.type("C-c")
        made.wait(lambda screen: screen[-1] == "ended 0")


@needs_tmux
def test_without_colours_if_the_user_wants_none(mount: Mount, scratch: Path) -> None:
    path = new_file(mount.path / "f", PAGE)
    command = inaccfs_command("map", path)
    with terminal(scratch, *command, columns=80, lines=24, NO_COLOR="1") as made:
        made.wait(lambda screen: screen[-1] == "ended 0")
        assert not any("\x1b[" in line for line in made.screen(colours=True))


def test_pages_of_the_users_own_tmpfs_are_seen(scratch: Path) -> None:
    """The file is in the backing: changes by other processes show."""
    backing = scratch / "backing"
    backing.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "inaccfs-test", backing)
    try:
        with mounted(backing=backing) as mount:
            path = new_file(mount.path / "f", 4 * PAGE)
            with opened(backing / "f") as fd:
                os.pwrite(fd, b"x", 2 * PAGE)
            assert drawn(path)[1] == "0x000000000  ..a."
    finally:
        run("umount", "-l", backing)


def test_private_and_shared_pages_are_told_apart_where_there_are_attributes() -> None:
    versions = [make() for make in VERSIONS]
    name = next(one.name for one in versions if one.attributes == "file")
    with mounted(semantics=name) as mount:
        path = new_file(mount.path / "f", 8 * PAGE)
        with (
            inaccfs.connect(mount.path) as shim,
            opened(path) as fd,
            shim.file(fd) as memory,
        ):
            fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4 * PAGE)
            private = memory.query_map()[0].private
            memory.set_memory_attributes(2, 4, private=not private)
            cells = "ppssSSPP" if private else "ssppPPSS"
            assert drawn(path)[1] == f"0x000000000  {cells}"


def test_pages_of_huge_folios_have_capitals() -> None:
    with mounted(pfn_source="simulated") as mount:
        path = new_file(mount.path / "f", 1024 * PAGE)
        with (
            inaccfs.connect(mount.path) as shim,
            opened(path) as fd,
            shim.file(fd) as memory,
        ):
            got = memory.get_pfns(0, 512)
            assert [extent.order for extent in got] == [9]
            assert "R referenced, in a huge folio (512)" in drawn(path)[-1]
            memory.put_pfns(got)
            assert "H fetched, in a huge folio (512)" in drawn(path)[-1]
