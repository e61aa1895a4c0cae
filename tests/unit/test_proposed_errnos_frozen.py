"""The errnos of the proposals, in rows: freezing.

The rows follow our notes on the proposals, sections 1.4 and 6.2; some are about
additions of this model.
"""

from __future__ import annotations

from errno import EBUSY, EFAULT, EINVAL, EOPNOTSUPP, EPERM

import pytest

from inaccfs import errnos
from inaccfs.errnos import EHWPOISON
from inaccfs.semantics import V8, GuestMemfd72, InPlaceV8, LiveUpdate, MigratableRfc
from inaccfs.syscalls import PUNCH
from tests.unit.errno_rows import Row, World, poisoned
from tests.unit.one_file import PAGE


def frozen(it: World) -> None:
    it.allocate(0, 1)
    it.file.freeze()


def freeze(it: World) -> None:
    it.file.freeze()


def unfreeze(it: World) -> None:
    it.file.unfreeze()


ROWS = (
    Row("freeze", LiveUpdate, 0, freeze),
    Row("freeze, unknown", GuestMemfd72, EOPNOTSUPP, freeze),
    Row("freeze, no size", LiveUpdate, EINVAL, lambda it: it.make(0).freeze()),
    Row("freeze, poisoned", LiveUpdate, EHWPOISON, freeze, poisoned),
    Row("freeze twice", LiveUpdate, EBUSY, freeze, frozen),
    Row("freeze another's", LiveUpdate, EPERM, lambda it: it.others.freeze(), frozen),
    Row("unfreeze", LiveUpdate, 0, unfreeze, frozen),
    Row(
        "unfreeze another's", LiveUpdate, EPERM, lambda it: it.others.unfreeze(), frozen
    ),
    Row("unfreeze, not frozen", LiveUpdate, EINVAL, unfreeze),
    Row("frozen: allocate", LiveUpdate, EPERM, lambda it: it.allocate(4, 1), frozen),
    Row("frozen: punch", LiveUpdate, EPERM, lambda it: it.punch(0, 1), frozen),
    Row(
        "frozen: bad arguments",
        LiveUpdate,
        EPERM,
        lambda it: it.mount.fallocate(it.fd, PUNCH, 1, 1),
        frozen,
    ),
    Row(
        "frozen: bad arguments, checked first",
        LiveUpdate,
        EINVAL,
        lambda it: it.mount.fallocate(it.fd, PUNCH, 1, 1),
        frozen,
        {"frozen": "after the checks"},
    ),
    Row("frozen: get a hole", LiveUpdate, EPERM, lambda it: it.file.get_pfn(4), frozen),
    Row(
        "frozen: get a present page",
        LiveUpdate,
        0,
        lambda it: it.file.get_pfn(0),
        frozen,
    ),
    Row(
        "frozen: pin a hole",
        LiveUpdate,
        EFAULT,
        lambda it: it.file.pin_pages(4),
        frozen,
    ),
    Row(
        "frozen: fault on a hole",
        LiveUpdate,
        EPERM,
        lambda it: it.file.shared_window().read(4 * PAGE, 1),
        frozen,
    ),
    Row(
        "frozen: write to a present page",
        LiveUpdate,
        0,
        lambda it: it.file.shared_window().write(0, b"x"),
        frozen,
    ),
    Row(
        "frozen: convert",
        InPlaceV8,
        EPERM,
        lambda it: it.convert(0, 1),
        frozen,
        {"frozen": "before the checks"},
    ),
    Row(
        "frozen: migrate",
        MigratableRfc,
        EPERM,
        lambda it: it.file.migrate(0, 1),
        frozen,
        {"frozen": "before the checks"},
    ),
    Row(
        "frozen: populate a hole",
        InPlaceV8,
        EPERM,
        lambda it: it.file.populate(4, 1),
        frozen,
        {"frozen": "before the checks"},
    ),
    Row(
        "frozen: truncate",
        V8,
        EPERM,
        lambda it: it.mount.ftruncate(it.fd, PAGE),
        frozen,
        {"frozen": "before the checks", "size": "free"},
    ),
)


def test_each_row_has_a_name_of_its_own() -> None:
    assert len({row.what for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row.what for row in ROWS])
def test_row(row: Row) -> None:
    assert row.outcome() == errnos.NAMES.get(row.number, row.number)
