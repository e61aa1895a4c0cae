"""Page frames by the control socket of real mounts: real ones and simulated ones."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inaccfs.syscalls import PUNCH
from tests.mount import support
from tests.mount.control_files import fallocate, guest
from tests.mount.peers import peer
from tests.mount.support import MIB, PAGE

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import inaccfs


def real_frames(mount: inaccfs.Mount) -> None:
    if mount.status().pfn_source != "pagemap":
        pytest.skip("the kernel shows no page frame numbers here")


def kpageflags(pfn: int) -> int:
    with open("/proc/kpageflags", "rb", buffering=0) as flags:
        return int.from_bytes(os.pread(flags.fileno(), 8, pfn * 8), sys.byteorder)


def test_frames_are_real_and_the_guest_sees_them(mount: inaccfs.Mount) -> None:
    """What one peer writes through get-memory is in the frame that another got."""
    real_frames(mount)
    with guest(mount) as fd, peer(mount.control) as shim:
        assert shim.do("getfd", fd, fdname="g") == {}
        got = shim.do("get-pfn", file="g", offset=3)
        assert got["order"] == 0
        uptodate, swapbacked = 1 << 3, 1 << 14
        assert kpageflags(got["pfn"]) & uptodate
        assert kpageflags(got["pfn"]) & swapbacked
        assert os.fstat(fd).st_blocks * 512 == PAGE
        extents = shim.do("get-pfn", file="g", offset=0, count=256)["extents"]
        assert sum(extent["count"] for extent in extents) == 256
        pfns = {
            e["offset"] + i: e["pfn"] + i for e in extents for i in range(e["count"])
        }
        assert pfns[3] == got["pfn"]
        assert len(set(pfns.values())) == 256


def test_get_pfn_of_a_huge_page_returns_its_order() -> None:
    with support.mounted(huge="always", size="64m") as mount:
        real_frames(mount)
        with guest(mount, 4 * MIB) as fd, peer(mount.control) as shim:
            shim.do("getfd", fd, fdname="g")
            got = shim.do("get-pfn", file="g", offset=5)
            if got["order"] == 0:
                pytest.skip("no huge page was to be had")
            assert got["order"] == 9
            assert got["pfn"] % 512 == 5
            (extent,) = shim.do("get-pfn", file="g", offset=1, count=511)["extents"]
            assert (extent["pfn"] % 512, extent["order"]) == (1, 9)


def test_a_punch_inside_a_fetched_huge_page_frees_memory(
    pool: ThreadPoolExecutor,
) -> None:
    """While it is pinned it could not be split."""
    with support.mounted(huge="always", size="64m") as mount:
        real_frames(mount)
        with guest(mount, 2 * MIB) as fd, peer(mount.control) as shim:
            shim.do("getfd", fd, fdname="g")
            shim.do("get-pfn", file="g", offset=0, count=512)
            before = os.fstat(fd).st_blocks
            assert fallocate(fd, PUNCH, PAGE, PAGE) == 0
            assert os.fstat(fd).st_blocks == before - PAGE // 512
            pins = shim.do("query-pins")
            assert sum(extent["count"] for extent in pins["extents"]) == 511
            (punched,) = [one for one in pins["references"] if one["punched"]]
            assert (punched["offset"], punched["count"]) == (1, 1)


def test_fetched_pages_stay_where_they_are_when_memory_is_compacted() -> None:
    """In v8 the mapping is unmovable; here pins do that."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    trigger = Path("/proc/sys/vm/compact_memory")
    if not trigger.exists():
        pytest.skip("a kernel without compaction")
    support.need_memory(256 * MIB)
    with support.mounted(size="256m") as mount:
        real_frames(mount)
        status = mount.status()
        if status.pinning != "io_uring":
            pytest.skip(f"pages are pinned by {status.pinning}")
        with guest(mount, 128 * MIB) as fd, peer(mount.control) as shim:
            os.posix_fallocate(fd, 0, 128 * MIB)
            # Every other page is punched, so that there is something to compact.
            for page in range(0, 128 * MIB // PAGE, 2):
                assert fallocate(fd, PUNCH, page * PAGE, PAGE) == 0
            shim.do("getfd", fd, fdname="g")
            pages = range(1, 16_384, 2)
            before = [
                shim.do("get-pfn", file="g", offset=page)["pfn"] for page in pages
            ]
            trigger.write_text("1")
            # The frames again, from the kernel, by a mapping in this process.
            assert shim.do("get-memory", file="g") == {}
            assert frames_of(shim.fds[0], pages) == before


def frames_of(fd: int, pages: range) -> list[int]:
    """The frames of pages, from /proc/self/pagemap of a mapping in this process."""
    found = []
    with (
        mmap.mmap(fd, (pages[-1] + 1) * PAGE) as view,
        open("/proc/self/pagemap", "rb", buffering=0) as pagemap,
    ):
        mapped = ctypes.c_char.from_buffer(view)
        address = ctypes.addressof(mapped)
        for page in pages:
            view[page * PAGE]
            entry = os.pread(pagemap.fileno(), 8, (address // PAGE + page) * 8)
            found.append(int.from_bytes(entry, sys.byteorder) & ((1 << 55) - 1))
        del mapped
    return found


def test_simulated_frames_need_no_privilege() -> None:
    found = []
    for _ in range(2):
        with (
            support.mounted(pfn_source="simulated", size="64m") as mount,
            guest(mount, 4 * MIB),
            peer(mount.control) as shim,
        ):
            assert mount.status().pfn_source == "simulated"
            found.append(shim.do("get-pfn", file="/guest", offset=0, count=1024))
    first, again = found
    assert again == first
    assert again["extents"][0]["order"] == 9


def test_fetched_memory_is_freed_with_the_file(mount: inaccfs.Mount) -> None:
    with peer(mount.control) as shim:
        with guest(mount) as fd:
            shim.do("getfd", fd, fdname="g")
            shim.do("get-pfn", file="g", offset=0, count=256)
            shim.do("closefd", fdname="g")
            for extent in shim.do("query-pins")["extents"]:
                assert (
                    shim.do(
                        "put-pfn",
                        file="/guest",
                        pfn=extent["pfn"],
                        count=extent["count"],
                    )
                    == {}
                )
        assert mount.status().allocated_pages == 256
        os.unlink(mount.path / "guest")
        support.ask_until(lambda: mount.status().allocated_pages == 0)


def test_a_full_backing_is_an_error_of_get_pfn() -> None:
    with (
        support.mounted(size="1m") as small,
        guest(small, 4 * MIB),
        peer(small.control) as shim,
    ):
        said = shim.do("get-pfn", file="/guest", offset=0, count=1024)
        assert said.startswith("ENOSPC")
        assert shim.do("query-file", file="/guest")["referenced"] == 0
        assert "pfn" in shim.do("get-pfn", file="/guest", offset=0)
