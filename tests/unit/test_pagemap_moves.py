"""Real frames that move, or cannot be pinned or found: none is reported wrongly."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inaccfs import mmcalls, syscalls, uring
from inaccfs.syscalls import PUNCH
from tests.unit.fakes import refused
from tests.unit.pagemap_files import (
    HUGE,
    MIB,
    PAGE,
    File,
    by_page,
    open_file,
    shuffle,
    unpinned,
)
from tests.unit.test_pins import locked_memory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inaccfs.shim import pins


# --- nothing moves ----------------------------------------------------------------


def test_compaction_moves_no_frame_that_was_fetched() -> None:
    with (
        open_file() as other,
        unpinned(other) as control,
        open_file(size=32 * MIB) as file,
    ):
        fetched = by_page(file.fetch(0, 4096))
        # Also fetched one by one.
        for page in range(5000, 5600):
            fetched.update(by_page(file.fetch(page, page + 1)))
        control.fetch(0, 4096)
        # Work for the compactor: every other page of some memory is free.
        with tempfile.TemporaryFile(dir="/dev/shm") as checkered:
            os.posix_fallocate(checkered.fileno(), 0, 256 * MIB)
            for offset in range(0, 256 * MIB, 2 * PAGE):
                syscalls.fallocate_now(checkered.fileno(), PUNCH, offset, PAGE)
            with open("/proc/sys/vm/compact_memory", "w", encoding="ascii") as trigger:
                trigger.write("1")
        now = file.read()
        assert {page: now[page] for page in fetched} == fetched
        assert file.frames.fetch(0, 4096).moved == []
        moved = sum(one.count for one in control.fetch(0, 4096).moved)
        print(f"of 4096 pages that nothing held {moved} have moved")


def test_locked_pages_are_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_permitted() -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(uring, "setup", not_permitted)
    with open_file() as file:
        assert file.source.pinning == "mlock (io_uring: Operation not permitted)"
        extents = file.fetch(0, 1024)
        assert file.frames.known(0, 1024) is None
        assert file.fetch(0, 1024) == extents
        assert file.frames.unpinned == 0
        assert file.frames.pages == 1024
        # A locked page is removed by a punch, too.
        assert by_page(file.punch(100, 200).removed).keys() == set(range(100, 200))
        assert file.allocated == 924
        assert file.frames.unpinned == 0
        assert file.frames.pages == 924
        assert len(file.fetch(0, 1024)) > 0


def test_pages_that_cannot_be_pinned_are_reported() -> None:
    with locked_memory(2 * MIB), open_file() as file:
        if not file.source.pins.stays:
            pytest.skip(f"no io_uring: {file.source.pinning}")
        assert file.source.pinning == "io_uring"
        file.fetch(0, 1024)
        loose = file.frames.unpinned
        assert 0 < loose <= 1024
        assert file.source.pinning == (
            f"io_uring; {loose} pages can move (Cannot allocate memory: raise the "
            "limit of locked memory, RLIMIT_MEMLOCK)"
        )
        assert file.frames.known(0, 1024) is None
        assert list(by_page(file.frames.extents()).values()) == file.read()[:1024]
        # They can be pinned when there is room again.
        file.punch(0, 1000)
        assert file.allocated == 3096
        file.fetch(1000, 1024)
        assert file.frames.unpinned == 0
        assert file.source.pinning == "io_uring"


# --- errors -----------------------------------------------------------------------


def test_pages_that_cannot_be_found_after_a_punch_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are reported as moved, and none of them stays mlocked."""

    def refuse(*_: int) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(uring, "setup", refuse)
    with open_file() as file:
        before = by_page(file.fetch(0, HUGE))

        def punch() -> None:
            file.bare_punch(100, 200)
            monkeypatch.setattr(mmcalls, "populate", refuse)

        punched = file.frames.punch(100, 200, punch)
        assert by_page(punched.removed) | by_page(punched.moved) == before
        assert by_page(punched.removed).keys() == set(range(100, 200))
        assert file.frames.extents() == []
        assert not file.frames._buffers.ranges


# --- any history ------------------------------------------------------------------


class Moody:
    """Pins that fail at times, as near RLIMIT_MEMLOCK."""

    def __init__(self, real: pins.Pins) -> None:
        self.allows = True
        self.description = real.description
        self.stays = real.stays
        self.refusal = ""
        self._real = real

    def hold(self, buffers: list[pins.Buffer]) -> list[int | None]:
        return self._real.hold(buffers) if self.allows else [None] * len(buffers)

    def release(self, tokens: Iterable[int]) -> None:
        self._real.release(tokens)

    def close(self) -> None:
        self._real.close()


LENGTH: Final = 200

spans = st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 60)).map(
    lambda one: (one[0], min(one[0] + one[1], LENGTH))
)
steps = st.tuples(
    st.sampled_from(["fetch", "punch", "punch and fail", "move and fail", "move"]),
    spans,
    # Whether the kernel lets pages be pinned.
    st.sampled_from([True, True, True, False]),
)


@settings(max_examples=40)
@given(st.lists(steps, min_size=1, max_size=12))
def test_each_page_is_where_it_was_reported(
    done: list[tuple[str, tuple[int, int], bool]],
) -> None:
    """A pinned page has not moved; the next call reports any other that has."""
    with open_file(size=LENGTH * PAGE) as file:
        pinning = Moody(file.frames._buffers._pins)
        file.frames._buffers._pins = pinning  # type: ignore[misc]
        known: dict[int, int] = {}
        for what, (start, end), pinning.allows in done:
            _do(file, known, what, start, end)
            assert by_page(file.frames.extents()) == known
            assert file.frames.pages == len(known)
            now = file.read()
            for page, pfn in known.items():
                if file.frames.known(page, page + 1) is not None:
                    assert now[page] == pfn


def _do(file: File, known: dict[int, int], what: str, start: int, end: int) -> None:
    """Do a step on a file, and on *known*, the frames that its user knows."""

    def fail() -> None:
        if what == "move and fail":
            shuffle(file, start, end)
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))

    match what:
        case "fetch":
            fetched = file.frames.fetch(start, end)
            found = by_page(fetched.extents)
            assert found == dict(enumerate(file.read()[start:end], start))
            # It may pin and read more than was asked for, up to a chunk.
            moved = by_page(fetched.moved)
            assert moved.items() <= known.items()
            assert {
                page: pfn for page, pfn in known.items() if found.get(page, pfn) != pfn
            }.items() <= moved.items()
            known.update(found)
        case "punch":
            punched = file.punch(start, end)
            removed = by_page(punched.removed)
            assert removed == {p: pfn for p, pfn in known.items() if start <= p < end}
            for page in removed:
                del known[page]
            for page in by_page(punched.moved):
                now = by_page(file.frames.extents()).get(page)
                if now is None:
                    del known[page]
                else:
                    known[page] = now
        case "punch and fail" | "move and fail":
            with refused(errno.EINTR):
                file.frames.punch(start, end, fail)
        case "move":
            for page in range(start, end):
                if file.frames.known(page, page + 1) is None:
                    shuffle(file, page, page + 1)
