"""Conversions, references, pins and punches in any order, against one flag per page."""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inaccfs.errors import PageError, PinnedError
from inaccfs.syscalls import PUNCH
from tests.unit.conversion_worlds import PAGE, SIZE, World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

Span: TypeAlias = tuple[int, int]
Call: TypeAlias = tuple[str, Span]

spans = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
    lambda pair: (pair[0], min(pair[1], SIZE - pair[0]))
)
names = st.sampled_from(["to private", "to shared", "get", "pin", "punch"])
calls = st.tuples(names, spans)


class Model:
    """A flag and two counts for each page; does each call, and checks what it does."""

    def __init__(self, it: World, pin_check: str, *, private: bool) -> None:
        self._it = it
        self._pin_check = pin_check
        self.private = [private] * SIZE
        # How often each page was got and pinned since it was last punched.
        self._got = [0] * SIZE
        self._pinned = [0] * SIZE

    def do(self, name: str, start: int, count: int) -> None:
        pages = range(start, start + count)
        file = self._it.file
        self._it.events.clear()
        if name == "get":
            file.get_pfns(start, count)
            for page in pages:
                self._got[page] += 1
        elif name == "pin":
            self._pin(pages)
        elif name == "punch":
            self._it.mount.fallocate(self._it.fd, PUNCH, start * PAGE, count * PAGE)
            for page in pages:
                self._got[page] = self._pinned[page] = 0
        else:
            self._convert(pages, private=name == "to private")

    def _pin(self, pages: range) -> None:
        file = self._it.file
        private = next((page for page in pages if self.private[page]), None)
        if private is None:
            file.pin_pages(pages.start, len(pages))
            for page in pages:
                self._pinned[page] += 1
            return
        with pytest.raises(PageError) as caught:
            file.pin_pages(pages.start, len(pages))
        assert (caught.value.errno, caught.value.offset) == (errno.EFAULT, private)

    def _refusing(self, pages: range) -> int | None:
        """The page for which a conversion to private is EAGAIN."""
        pinned = [page for page in pages if self._pinned[page]]
        if pinned and self._pin_check == "pins first":
            return pinned[0]
        return min(
            [*pinned, *(page for page in pages if self._got[page])], default=None
        )

    def _convert(self, pages: range, *, private: bool) -> None:
        kinds = {self.private[page] for page in pages}
        place = pages.start, len(pages), private
        page = self._refusing(pages) if private and kinds != {True} else None
        if page is not None:
            with pytest.raises(PinnedError) as caught:
                self._it.file.set_memory_attributes(*place)
            assert (caught.value.offset, self._it.events) == (page, [])
            return
        self._it.file.set_memory_attributes(*place)
        zapped = "both" if len(kinds) > 1 else "private" if True in kinds else "shared"
        part = pages.start, pages.stop, zapped
        events = [("start", *part), ("end", *part)] if kinds != {private} else []
        assert self._it.events == events
        self.private[pages.start : pages.stop] = [private] * len(pages)


def runs(flags: list[bool]) -> Iterator[Span]:
    """The ranges of flags that are set."""
    at = 0
    for flag, run in itertools.groupby(flags):
        length = len(list(run))
        if flag:
            yield at, at + length
        at += length


@given(
    st.sampled_from(["references", "pins first"]),
    st.sampled_from(["private", "shared"]),
    st.lists(calls, max_size=12),
)
@settings(max_examples=300)
def test_any_sequence_of_calls_does_what_a_flag_a_page_would(
    pin_check: str, initial: str, sequence: list[Call]
) -> None:
    with world(pin_check=pin_check, initial=initial) as it:
        it.listen(0, SIZE)
        model = Model(it, pin_check, private=initial == "private")
        for name, (start, count) in sequence:
            model.do(name, start, count)
            assert it.private == list(runs(model.private))
