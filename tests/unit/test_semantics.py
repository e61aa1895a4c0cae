"""The rules of v8 as tables: inaccessible_fallocate() and inaccessible_setattr()."""

from __future__ import annotations

import errno

import pytest

from inaccfs.semantics import V8
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, PUNCH
from tests.unit.fakes import refused

SMALL = 4096
HUGE = 2 << 20
ZERO_RANGE = 0x10  # of include/uapi/linux/falloc.h


def test_the_magic_is_inac() -> None:
    assert V8.magic.to_bytes(4, "big") == b"INAC"


@pytest.mark.parametrize(
    ("mode", "offset", "length", "page", "allowed"),
    [
        pytest.param(PUNCH, 0, SMALL, SMALL, True, id="aligned punch"),
        pytest.param(PUNCH, SMALL, 3 * SMALL, SMALL, True, id="punch in the middle"),
        pytest.param(PUNCH, 1, SMALL, SMALL, False, id="offset unaligned"),
        pytest.param(PUNCH, 0, SMALL - 1, SMALL, False, id="length unaligned"),
        pytest.param(PUNCH, 512, SMALL - 512, SMALL, False, id="only the end aligned"),
        pytest.param(PUNCH, 0, SMALL, HUGE, False, id="small page of a huge one"),
        pytest.param(PUNCH, SMALL, HUGE, HUGE, False, id="huge offset unaligned"),
        pytest.param(PUNCH, HUGE, HUGE, HUGE, True, id="aligned huge punch"),
        pytest.param(
            FALLOC_FL_PUNCH_HOLE, 1, 1, SMALL, False, id="punch without KEEP_SIZE"
        ),
        # As posted, PAGE_ALIGNED() is checked for a punch only.
        pytest.param(0, 1, 1, SMALL, True, id="unaligned allocation"),
        pytest.param(FALLOC_FL_KEEP_SIZE, 7, 9, HUGE, True, id="unaligned KEEP_SIZE"),
        # The backing refuses these, not the shim.
        pytest.param(ZERO_RANGE, 1, 1, SMALL, True, id="another mode"),
        pytest.param(PUNCH, 0, 0, SMALL, True, id="empty punch"),
    ],
)
def test_only_a_punch_must_be_aligned(
    mode: int, offset: int, length: int, page: int, allowed: bool
) -> None:
    if allowed:
        V8().check_fallocate(mode, offset, length, page)
        return
    with refused(errno.EINVAL, "Invalid argument"):
        V8().check_fallocate(mode, offset, length, page)


@pytest.mark.parametrize(
    ("current", "new", "page", "error"),
    [
        pytest.param(0, SMALL, SMALL, 0, id="sized once"),
        pytest.param(0, 0, SMALL, 0, id="nothing to nothing"),
        pytest.param(0, 1, SMALL, errno.EINVAL, id="unaligned"),
        pytest.param(0, SMALL, HUGE, errno.EINVAL, id="small page of a huge one"),
        pytest.param(0, HUGE, HUGE, 0, id="one huge page"),
        pytest.param(SMALL, 2 * SMALL, SMALL, errno.EPERM, id="growing"),
        pytest.param(SMALL, 0, SMALL, errno.EPERM, id="shrinking to nothing"),
        pytest.param(SMALL, SMALL, SMALL, errno.EPERM, id="the same size again"),
        pytest.param(SMALL, 1, SMALL, errno.EPERM, id="EPERM comes before EINVAL"),
        # An unaligned allocation has set this size.
        pytest.param(1, SMALL, SMALL, errno.EPERM, id="an unaligned size is a size"),
    ],
)
def test_a_size_is_set_once_and_aligned(
    current: int, new: int, page: int, error: int
) -> None:
    if not error:
        V8().check_size(current, new, page)
        return
    with refused(error, r"not permitted|Invalid"):
        V8().check_size(current, new, page)
