"""The errnos of the proposals, in rows: conversion, huge pages, write(2), overlap.

The rows follow our notes on the proposals, sections 1.3, 2, 3.1, 3.2 and 8; some
are about additions of this model. test_control_attributes.py has the arguments that the
protocol's types refuse, such as a count of 0.
"""

from __future__ import annotations

from errno import (
    EAGAIN,
    EEXIST,
    EFAULT,
    EINVAL,
    ENODEV,
    ENOMEM,
    ENOSPC,
    EOPNOTSUPP,
)

import pytest

from inaccfs import errnos
from inaccfs.errnos import EHWPOISON
from inaccfs.errors import BusError, PageError
from inaccfs.semantics import (
    GuestMemfd,
    GuestMemfd72,
    GuestMemfdMmap,
    GuestMemfdShared,
    HugetlbRfc,
    InPlaceNext,
    InPlaceV8,
    WriteV7,
)
from inaccfs.shim import hostaccess
from tests.unit.errno_rows import HUGE, PAGES, Row, World, poisoned, world
from tests.unit.one_file import PAGE, mine

SHARED = {"initial": "shared"}


def mixed(it: World) -> None:
    it.convert(0, 4)


def touch(it: World) -> object:
    return it.file.shared_window().read(0, 1)


def pin(it: World) -> object:
    return it.file.pin_pages(0)


def got(it: World) -> object:
    return it.file.get_pfn(3)


def populate(it: World) -> object:
    return it.file.populate(0, 1)


def to_private(it: World) -> None:
    it.convert(0, PAGES, True)


def to_shared(it: World) -> None:
    it.convert(0, PAGES)


ROWS = (
    # --- 1.3: set-memory-attributes
    Row("all of it", InPlaceV8, 0, to_shared),
    Row("as it is already", InPlaceV8, 0, to_private),
    Row("empty", InPlaceV8, EINVAL, lambda it: it.convert(4, 0)),
    Row("negative count", InPlaceV8, EINVAL, lambda it: it.convert(4, -1)),
    Row("negative offset", InPlaceV8, EINVAL, lambda it: it.convert(-1, 2)),
    Row("begins at the end", InPlaceV8, EINVAL, lambda it: it.convert(PAGES, 1)),
    Row("ends past it", InPlaceV8, EINVAL, lambda it: it.convert(PAGES - 1, 2)),
    Row("wraps", InPlaceV8, EINVAL, lambda it: it.convert((1 << 51) - 1, 1 << 51)),
    Row("huge count", InPlaceV8, EINVAL, lambda it: it.convert(0, 1 << 51)),
    Row("to private, referenced", InPlaceV8, EAGAIN, to_private, got, SHARED),
    Row(
        "to private, pinned",
        InPlaceNext,
        EAGAIN,
        to_private,
        lambda it: it.file.pin_pages(3),
        SHARED,
    ),
    Row("to shared, referenced", InPlaceV8, 0, to_shared, got),
    Row(
        "content that would go",
        InPlaceV8,
        EOPNOTSUPP,
        to_shared,
        lambda it: it.allocate(5, 1),
        {"content": "refused"},
    ),
    Row("attributes per VM", GuestMemfd, EOPNOTSUPP, lambda it: it.convert(0, 1)),
    Row("and in 7.2", GuestMemfd72, EOPNOTSUPP, lambda it: it.convert(0, 1)),
    Row("no attributes", GuestMemfdShared, EOPNOTSUPP, lambda it: it.convert(0, 1)),
    Row(
        "by another client",
        InPlaceV8,
        0,
        lambda it: it.others.set_memory_attributes(0, 1, False),
    ),
    # --- 1.4: user faults
    Row("fault, private", InPlaceV8, EFAULT, touch),
    Row("fault, shared", InPlaceV8, 0, touch, mixed),
    Row(
        "fault over the edge",
        InPlaceV8,
        EFAULT,
        lambda it: it.file.shared_window().read(4 * PAGE - 1, 2),
        mixed,
    ),
    Row(
        "fault past the end",
        InPlaceV8,
        EFAULT,
        lambda it: it.file.shared_window().read(PAGES * PAGE, 1),
        rules=SHARED,
    ),
    Row("fault without mmap", GuestMemfd, ENODEV, touch),
    Row("fault, MMAP only", GuestMemfdMmap, EFAULT, touch),
    Row("fault, INIT_SHARED", GuestMemfdShared, 0, touch),
    Row("fault, poisoned", GuestMemfdShared, EHWPOISON, touch, poisoned),
    Row("pin, private", InPlaceV8, EFAULT, lambda it: it.file.pin_pages(0)),
    Row("pin, poisoned", InPlaceV8, EFAULT, pin, poisoned, SHARED),
    Row("pin, past the end", InPlaceV8, EFAULT, lambda it: it.file.pin_pages(PAGES)),
    Row("pin without mmap", GuestMemfd, ENODEV, pin),
    Row(
        "put-pfn, no references", InPlaceNext, EOPNOTSUPP, lambda it: it.file.put_pfn(1)
    ),
    # --- 1.4, 3.1: populate
    Row("populate, in place", InPlaceV8, 0, lambda it: it.file.populate(0, 4)),
    Row(
        "populate, shared", InPlaceV8, EINVAL, lambda it: it.file.populate(0, 4), mixed
    ),
    Row("populate, no source", GuestMemfd72, EINVAL, lambda it: it.file.populate(0, 4)),
    Row("populate", GuestMemfd72, 0, lambda it: it.file.populate(0, 4, it.make(4))),
    Row(
        "populate, empty",
        GuestMemfd72,
        EINVAL,
        lambda it: it.file.populate(0, 0, it.make(4)),
    ),
    Row(
        "populate, past the end",
        GuestMemfd72,
        EINVAL,
        lambda it: it.file.populate(PAGES - 1, 2, it.make(4)),
    ),
    Row(
        "populate, source too short",
        GuestMemfd72,
        EFAULT,
        lambda it: it.file.populate(0, 1, it.make(4), 4),
    ),
    Row(
        "populate, private source",
        InPlaceV8,
        EFAULT,
        lambda it: it.file.populate(0, 1, it.make(4)),
    ),
    Row("populate, poisoned", InPlaceV8, EHWPOISON, populate, poisoned),
    # The folio is got first, and then it is asked whether it is private.
    Row(
        "populate, shared and poisoned",
        InPlaceV8,
        EHWPOISON,
        populate,
        poisoned,
        SHARED,
    ),
    Row("populate, unknown", GuestMemfd, EOPNOTSUPP, populate),
    # --- 2: huge pages
    Row("size of a small page", HugetlbRfc, EINVAL, lambda it: it.make(1)),
    Row("size of a huge page", HugetlbRfc, 0, lambda it: it.make(HUGE)),
    Row("allocate, unaligned", HugetlbRfc, EINVAL, lambda it: it.allocate(1, HUGE)),
    Row("allocate, too short", HugetlbRfc, EINVAL, lambda it: it.allocate(0, 1)),
    Row("allocate", HugetlbRfc, 0, lambda it: it.allocate(0, HUGE)),
    Row("punch, unaligned", HugetlbRfc, EINVAL, lambda it: it.punch(1, HUGE + 1)),
    Row("punch", HugetlbRfc, 0, lambda it: it.punch(0, HUGE)),
    Row("punch, referenced", HugetlbRfc, EAGAIN, lambda it: it.punch(0, HUGE), got),
    Row(
        "punch, referenced, elsewhere", InPlaceV8, 0, lambda it: it.punch(0, HUGE), got
    ),
    Row("convert one page", HugetlbRfc, 0, lambda it: it.convert(5, 1)),
    # --- 3.2: write(2)
    Row("write a page", WriteV7, 0, lambda it: it.write(PAGE, PAGE)),
    Row("write, no flag", GuestMemfd72, ENODEV, lambda it: it.write(0, PAGE)),
    Row("write, unaligned", WriteV7, EINVAL, lambda it: it.write(1, PAGE)),
    Row("write, a part", WriteV7, EINVAL, lambda it: it.write(0, PAGE - 1)),
    Row(
        "write, past the end", WriteV7, EINVAL, lambda it: it.write(PAGES * PAGE, PAGE)
    ),
    Row(
        "write, private",
        InPlaceV8,
        ENODEV,
        lambda it: it.write(0, PAGE),
        rules={"population": "write"},
    ),
    Row(
        "write, shared",
        InPlaceV8,
        0,
        lambda it: it.write(0, PAGE),
        mixed,
        {"population": "write"},
    ),
    # --- 8: overlap at bind
    Row("overlap, 6.18", GuestMemfd, EINVAL, lambda it: it.others.bind(0, 1, print)),
    Row("overlap, 7.2", GuestMemfd72, EEXIST, lambda it: it.others.bind(0, 1, print)),
    Row("no overlap", GuestMemfd72, 0, lambda it: it.others.bind(HUGE, PAGES, print)),
    Row(
        "bind past the end",
        GuestMemfd72,
        EINVAL,
        lambda it: it.others.bind(HUGE, PAGES + 1, print),
    ),
)


def test_each_row_has_a_name_of_its_own() -> None:
    assert len({row.what for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_row(row: Row) -> None:
    assert row.outcome() == errnos.NAMES.get(row.number, row.number)


def test_which_page_cannot_be_pinned_is_said() -> None:
    with world(mine(InPlaceV8, **SHARED)) as it:
        with pytest.raises(PageError, match="lies past the end") as caught:
            it.file.pin_pages(PAGES - 1, 3)
        assert (caught.value.errno, caught.value.offset) == (EFAULT, PAGES)
        it.file.get_pfn(3)
        it.file.memory_failure(3)
        with pytest.raises(PageError, match="page 3 is poisoned") as caught:
            it.file.pin_pages(1, 5)
        assert (caught.value.errno, caught.value.offset) == (EFAULT, 3)


@pytest.mark.parametrize(("met", "number"), [(ENOSPC, EFAULT), (ENOMEM, ENOMEM)])
def test_a_pin_of_a_hole_that_gets_no_memory(
    met: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vm_fault_to_errno(): VM_FAULT_OOM is ENOMEM, and VM_FAULT_SIGBUS is EFAULT."""

    def full(fd: int, offset: int, length: int) -> None:
        raise errnos.os_error(met)

    monkeypatch.setattr(hostaccess, "allocate", full)
    with world(mine(InPlaceV8, **SHARED)) as it:
        with pytest.raises(PageError) as caught:
            it.file.pin_pages(3, 2)
        assert (caught.value.errno, caught.value.offset) == (number, 3)
        assert not isinstance(caught.value, BusError)
