"""mmap(2) under each value of the rule `mmap`: refused, SIGBUS, or shared."""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
from typing import TYPE_CHECKING

import pytest

from inaccfs import syscalls
from inaccfs.syscalls import PUNCH
from tests.mount import support
from tests.mount.support import PAGE, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs import Mount

pytestmark = [pytest.mark.fuse, support.needs_root]

SIGBUS = "guest_memfd:mmap"
SHARED = "guest_memfd:mmap+init_shared"


@pytest.fixture
def ruled(request: pytest.FixtureRequest) -> Iterator[Mount]:
    with support.mounted(semantics=request.param, size="64m") as mount:
        if "needs" in (mmap_state := mount.status().mmap):
            pytest.skip(f"mmap: {mmap_state}")
        yield mount


def fate(work: Callable[[], object]) -> int:
    """The signal that *work* dies of in a child; 0 if it does not."""
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.mark.parametrize("ruled", [SIGBUS], indirect=True)
@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_private_memory_is_mapped_and_a_touch_is_sigbus(
    ruled: Mount, flags: int
) -> None:
    assert not ruled.status().sealed
    assert ruled.status().mmap.startswith("not sealed: mapped, but a touch is SIGBUS")
    with opened(ruled.path / "guest", os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, 2 * PAGE)
        with mmap.mmap(fd, 2 * PAGE, flags) as mapping:
            assert fate(lambda: mapping[0]) == signal.SIGBUS
            assert fate(lambda: mapping.__setitem__(PAGE, 1)) == signal.SIGBUS
        assert support.outcome(os.read, fd, 1) == "EINVAL"


@pytest.mark.parametrize("ruled", [SHARED], indirect=True)
def test_shared_memory_is_that_of_the_file(ruled: Mount) -> None:
    assert ruled.status().mmap.startswith("not sealed: maps the memory itself")
    path = ruled.path / "guest"
    with (
        opened(path, os.O_RDWR | os.O_CREAT) as fd,
        # Another open of the same inode must have the same backing file.
        opened(path, os.O_RDONLY) as reader,
    ):
        os.ftruncate(fd, 2 * PAGE)
        with (
            mmap.mmap(fd, 2 * PAGE, mmap.MAP_SHARED) as mapping,
            mmap.mmap(reader, 2 * PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as seen,
        ):
            mapping[0], mapping[PAGE] = 1, 2
            assert (seen[0], seen[PAGE]) == (1, 2)
            assert support.allocated(fd) == 2 * PAGE
            syscalls.fallocate(fd, PUNCH, 0, PAGE)
            assert (seen[0], seen[PAGE]) == (0, 2)
        assert support.outcome(os.pread, fd, 1, 0) == "EINVAL"
    # The data is still there when the file is opened again.
    with (
        opened(path, os.O_RDWR) as fd,
        mmap.mmap(fd, 2 * PAGE, mmap.MAP_SHARED) as mapping,
    ):
        assert mapping[PAGE] == 2


@pytest.mark.parametrize("ruled", [SHARED], indirect=True)
def test_a_file_never_has_the_memory_of_a_deleted_one(ruled: Mount) -> None:
    """Inode numbers are reused; backing files must not be."""
    numbers = set()
    for round_ in range(64):
        path = ruled.path / f"guest{round_ % 3}"
        with opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            numbers.add(os.fstat(fd).st_ino)
            os.ftruncate(fd, PAGE)
            with mmap.mmap(fd, PAGE, mmap.MAP_SHARED) as mapping:
                assert mapping[0] == 0
                mapping[0] = 1
        os.unlink(path)
    assert os.listdir(ruled.path) == []
    support.wait_until_unused(ruled.path)
    assert ruled.status().files == 0


@pytest.mark.parametrize("ruled", [SHARED], indirect=True)
def test_memory_goes_with_the_last_open_and_not_before(ruled: Mount) -> None:
    """This is so even if a peer of the control socket has the file open."""
    path = ruled.path / "guest"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.ftruncate(fd, PAGE)
        mapping = mmap.mmap(fd, PAGE, mmap.MAP_SHARED)
        mapping[0] = 7
    os.unlink(path)
    # Mapped through the backing file, so FUSE's own file is not open any more.
    assert mapping[0] == 7
    mapping.close()
    support.ask_until(lambda: ruled.status().allocated_pages == 0)
