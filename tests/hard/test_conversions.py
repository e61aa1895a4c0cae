"""Many peers convert, get, pin, punch, populate and write to the same pages at once."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from typing import TYPE_CHECKING, Final

import pytest

import inaccfs
from inaccfs import syscalls
from tests.hard.budget import times
from tests.mount import support
from tests.mount.support import PAGE, PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs import Mount
    from inaccfs.client import File

pytestmark = pytest.mark.fuse

# Four huge pages.
PAGES: Final = 2048
HUGE: Final = 512
# The number of calls of each thread.
CALLS: Final = times(40, 4000)

# The errnos for pages that are private, shared, referenced or past the end, and for
# put-pfn without references.
REFUSALS: Final = (errno.EAGAIN, errno.EFAULT, errno.EINVAL, errno.EOPNOTSUPP)


def convert(file: File, start: int, count: int) -> None:
    file.set_memory_attributes(start, count, start % 2 == 0)


def get(file: File, start: int, count: int) -> None:
    file.put_pfns(file.get_pfns(start, count))


def pin(file: File, start: int, count: int) -> None:
    file.unpin_pages(file.pin_pages(start, count))


def touch(file: File, start: int, count: int) -> None:
    file.shared_window().write(start * PAGE, b"x" * min(count, 3) * PAGE)


def populate(file: File, start: int, count: int) -> None:
    file.populate(start, min(count, 5))


class Storm:
    """Threads that make calls at random pages, and their unexpected errors."""

    def __init__(self, mount: Mount, fd: int) -> None:
        self._mount = mount
        self._fd = fd
        self.surprises: list[BaseException] = []
        # How many calls have succeeded.
        self.done = 0

    def punch(self, file: File, start: int, count: int) -> None:
        first, last = start // HUGE, -(-(start + count) // HUGE)
        offset, length = first * HUGE * PAGE, (last - first) * HUGE * PAGE
        syscalls.fallocate(self._fd, syscalls.PUNCH, offset, length)

    def run(self, call: Callable[[File, int, int], None], seed: int) -> None:
        dice = random.Random(seed)
        try:
            with inaccfs.connect(self._mount.control) as client:
                file = client.file(self._fd)
                for _ in range(CALLS):
                    start = dice.randrange(PAGES)
                    count = min(dice.choice((1, 3, 600)), PAGES - start)
                    self._once(call, file, start, count)
        except BaseException as exc:
            self.surprises.append(exc)

    def _once(
        self,
        call: Callable[[File, int, int], None],
        file: File,
        start: int,
        count: int,
    ) -> None:
        try:
            call(file, start, count)
        except OSError as exc:
            if exc.errno not in REFUSALS:
                raise
        else:
            self.done += 1


@pytest.mark.parametrize("semantics", ["in-place-v8", "in-place-next", "hugetlb-rfc"])
def test_a_storm_of_conversions(semantics: str) -> None:
    with (
        support.mounted(semantics=semantics, size="64m") as mount,
        inaccfs.connect(mount.control) as vm,
    ):
        fd = vm.memfd_create("guest", size=PAGES * PAGE)
        file = vm.file(fd)
        storm = Storm(mount, fd)
        calls = (convert, convert, get, get, pin, touch, populate, storm.punch)
        with (
            file.bind(0, PAGES // 2, lambda start, end: None),
            file.bind(PAGES // 2, PAGES, lambda start, end: None),
        ):
            threads = [
                threading.Thread(target=storm.run, args=(call, seed))
                for seed, call in enumerate(calls)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE * max(1, CALLS // 400))
            assert not any(thread.is_alive() for thread in threads)
        assert storm.surprises == []
        assert storm.done > CALLS
        rows = file.query_memory_attributes()
        assert sum(row.count for row in rows) == PAGES
        assert all(
            one.private is not other.private for one, other in itertools.pairwise(rows)
        )
        # The peers with references have disconnected, so nothing refuses a conversion.
        support.ask_until(lambda: not vm.query_pins().references)
        file.set_memory_attributes(0, PAGES, True)
        os.close(fd)
