"""The reserve of fds: which numbers are in it, whatever the limit becomes."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

import pytest

from inaccfs.fuse.descriptors import Reserve

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Sets the limit; returns a list that grows with each query of it."""

    def set_to(limit: int) -> list[int]:
        looks: list[int] = []

        def getrlimit(which: int) -> tuple[int, int]:
            assert which == resource.RLIMIT_NOFILE
            looks.append(limit)
            return limit, limit

        monkeypatch.setattr(resource, "getrlimit", getrlimit)
        return looks

    return set_to


def test_the_last_quarter_is_the_reserve_and_of_that_a_half_a_share(
    limited: Callable[[int], list[int]],
) -> None:
    limited(400)
    reserve = Reserve()
    for _ in range(2):
        assert [reserve.has(fd) for fd in (3, 299, 300, 399)] == [
            *(False, False),
            *(True, True),
        ]
        assert [reserve.has(fd, 2) for fd in (299, 349, 350)] == [False, False, True]
        # What is free of half of the reserve is in the other half.
        assert reserve.has(320)


def test_the_limit_is_not_looked_up_for_each_open(
    limited: Callable[[int], list[int]],
) -> None:
    looks = limited(400)
    reserve = Reserve()
    for _ in range(100):
        assert not reserve.has(100)
        assert not reserve.has(20)
    assert 1 <= len(looks) <= 10


def test_a_limit_that_has_become_lower_is_seen_soon(
    limited: Callable[[int], list[int]],
) -> None:
    limited(4000)
    reserve = Reserve()
    assert not reserve.has(300)
    limited(400)
    # For a higher number the limit is queried at once.
    assert reserve.has(301)
    limited(4000)
    assert not reserve.has(300)
    limited(400)
    seen = [reserve.has(300) for _ in range(100)]
    # The limit is queried before the reserve of such a low limit is used up.
    assert seen.index(True) < 100
