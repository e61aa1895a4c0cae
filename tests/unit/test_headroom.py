"""How much memory the cgroups leave, according to the files of a cgroup file system."""

from __future__ import annotations

import errno
import gc
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from inaccfs.helper.pool import Pool
from inaccfs.semantics import V8
from inaccfs.shim import headroom
from inaccfs.shim.allocator import Allocator
from inaccfs.shim.file import InaccessibleFile
from inaccfs.shim.frameoptions import SimulatedMemory
from inaccfs.shim.headroom import Headroom
from inaccfs.shim.simulated import SimulatedSource
from inaccfs.shim.superblock import Superblock
from tests.unit.fakes import refused
from tests.unit.pages_fakes import Holder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from inaccfs.semantics import Semantics
    from inaccfs.shim.pages import Pages

MIB = 1 << 20
LIMIT = 96 * MIB
# The part of this limit that is reserved for everything except files.
RESERVE = 6 * MIB


class Machine:
    """A /proc/self and a hierarchy of cgroups, "/" to "/one/two"."""

    def __init__(self, directory: Path, version: int, root: str = "/") -> None:
        self.proc = directory / "proc"
        self.top = directory / "cgroups"
        self.proc.mkdir()
        (self.top / "one" / "two").mkdir(parents=True)
        self.limit, self.usage = headroom._FILES[
            "cgroup2" if version == 2 else "cgroup"
        ]
        self.prefix = "" if version == 2 else "total_"
        kind = "cgroup2" if version == 2 else "cgroup"
        options = "rw" if version == 2 else "rw,memory"
        (self.proc / "mountinfo").write_text(
            f"30 24 0:26 {root} {self.top} rw - {kind} cgroup {options}\n"
        )
        self.line = "0::" if version == 2 else "4:cpu,memory:"
        self.move("/one/two")

    def move(self, path: str) -> None:
        (self.proc / "cgroup").write_text(f"9:pids:/\n{self.line}{path}\n")

    def set(self, path: str, limit: int | str, usage: int, cache: int = 0) -> None:
        directory = self.top / path
        (directory / self.limit).write_text(f"{limit}\n")
        (directory / self.usage).write_text(f"{usage}\n")
        (directory / "memory.stat").write_text(
            f"file 7\n{self.prefix}inactive_file {cache}\n{self.prefix}active_file 0\n"
        )

    def headroom(self) -> Headroom:
        return Headroom(str(self.proc))


@pytest.fixture(params=[1, 2])
def machine(tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    return Machine(tmp_path, request.param)


def test_without_a_limit_all_is_allowed(machine: Machine) -> None:
    machine.set("one/two", "max" if "max" in machine.limit else (1 << 63) - 4096, MIB)
    assert machine.headroom().allows(1 << 40)


def test_without_cgroups_all_is_allowed(tmp_path: Path) -> None:
    assert Headroom(str(tmp_path)).allows(1 << 40)


def test_half_of_the_memory_left_is_allowed(machine: Machine) -> None:
    machine.set("one/two", LIMIT, LIMIT - RESERVE - 8 * MIB)
    made = machine.headroom()
    assert not made.allows(5 * MIB)
    assert made.allows(3 * MIB)
    # It is not read again.
    machine.set("one/two", LIMIT, LIMIT)
    assert made.allows(MIB)
    assert not made.allows(MIB)


def test_the_narrowest_limit_counts(machine: Machine) -> None:
    machine.set("one/two", LIMIT, 0)
    machine.set("one", LIMIT, LIMIT - RESERVE - MIB)
    assert machine.headroom().free() == MIB
    machine.move("/")
    assert machine.headroom().allows(LIMIT)


def test_the_daemon_may_be_moved(machine: Machine) -> None:
    machine.set("one/two", LIMIT, LIMIT)
    made = machine.headroom()
    assert not made.allows(MIB)
    machine.move("/one")
    assert made.allows(MIB)


def test_a_part_of_the_hierarchy_may_be_mounted(tmp_path: Path) -> None:
    """This is so in a container without a cgroup namespace."""
    machine = Machine(tmp_path, 2, root="/one")
    (machine.top / "two").mkdir()
    machine.set("two", LIMIT, LIMIT - RESERVE)
    assert machine.headroom().free() == 0
    # Where it is not mounted nothing is known.
    machine.move("/oneself")
    assert machine.headroom().allows(LIMIT)


def test_reclaimable_memory_counts_as_free(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headroom, "_can_swap", lambda: False)
    machine.set("one/two", LIMIT, LIMIT - RESERVE, cache=8 * MIB)
    made = machine.headroom()
    assert not made.allows(MIB)
    fd = os.memfd_create("backing")
    made.check(fd, 0, 8 * MIB)
    with refused(errno.ENOMEM):
        made.check(fd, 0, 8 * MIB + 4096)
    # Pages that are allocated already need no memory.
    os.posix_fallocate(fd, MIB, MIB)
    made.check(fd, 0, 9 * MIB)
    with refused(errno.ENOMEM):
        made.check(fd, 2 * MIB, 9 * MIB)
    # If pages can be swapped out there may be more room.
    monkeypatch.setattr(headroom, "_can_swap", lambda: True)
    made.check(fd, 0, LIMIT)
    os.close(fd)


def test_memory_for_names_is_refused_where_nothing_is_left(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headroom, "_can_swap", lambda: False)
    made = machine.headroom()
    machine.set("one/two", LIMIT, LIMIT, cache=RESERVE + MIB)
    # The page cache can be reclaimed.
    made.take(MIB)
    machine.set("one/two", LIMIT, LIMIT, cache=RESERVE)
    with refused(errno.ENOMEM):
        made.take(4096)
    monkeypatch.setattr(headroom, "_can_swap", lambda: True)
    made.take(4096)


# --- get-pfn, which allocates more than it is asked for ----------------------------


@contextmanager
def fetching(machine: Machine, semantics: Semantics | None = None) -> Iterator[Pages]:
    """The pages of a file of 8 MiB whose folios have 2 MiB, and simulated frames."""
    pool, headroom = Pool(), machine.headroom()
    fd = os.memfd_create("backing")
    os.ftruncate(fd, 8 * MIB)
    shim = Superblock(
        semantics or V8(),
        4096,
        allocator=Allocator(pool, headroom),
        headroom=headroom,
        frames=SimulatedSource(SimulatedMemory()),
    )
    try:
        yield InaccessibleFile(fd, shim).pages
    finally:
        pool.close()
        gc.unfreeze()
        os.close(fd)


@pytest.mark.parametrize("huge_granule", [False, True])
async def test_the_rest_of_a_folio_counts(
    machine: Machine, huge_granule: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Headroom` counts what is allocated, not only what is asked for."""
    monkeypatch.setattr(headroom, "_can_swap", lambda: False)
    rules = type("Mine", (V8,), {"granule": "huge page"} if huge_granule else {})()
    machine.set("one/two", LIMIT, 0)
    with fetching(machine, rules) as pages:
        peer = Holder()
        assert pages.get_now(peer, 700, 701) is not None
        left = pages._superblock.headroom.left
        for page in (0, 1, 600, 512):
            assert pages.get_now(peer, page, page + 1) is not None
        # Of two folios, and of the one only that was not there.
        assert pages._superblock.headroom.left == left - 2 * MIB
        # The limit has room for the page, but not for its folio.
        machine.set("one/two", LIMIT, LIMIT - RESERVE - MIB)
        pages._superblock.headroom.left = 0
        before = os.fstat(pages._fd).st_blocks
        with refused(errno.ENOMEM):
            await pages.get(peer, 1024, 1025)
        assert os.fstat(pages._fd).st_blocks == before
        # Near the limit a worker allocates the whole folio.
        machine.set("one/two", LIMIT, LIMIT - RESERVE - 3 * MIB)
        await pages.get(peer, 1024, 1025)
        assert os.fstat(pages._fd).st_blocks == before + 2 * MIB // 512
        assert pages._superblock.headroom.left == 0
