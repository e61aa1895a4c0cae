"""The table of versions, row by row: which version had which rule.

The rows are those of "API by version" in our notes on the history, which name the
mails. Where a version departs from its column on purpose, the test says why.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest

from inaccfs.control import messages, queries
from inaccfs.semantics import VERSIONS, Plan, load
from inaccfs.semantics.rules import (
    INVALIDATE,
    INVALIDATE_END,
    INVALIDATE_START,
    MEMORY_ERROR,
    POPULATE,
)
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.unit.one_file import PAGE, outcome

KEEP = FALLOC_FL_KEEP_SIZE
ZERO_RANGE = 0x10  # of include/uapi/linux/falloc.h

NAMES = tuple(version.name for version in VERSIONS)

V8S = ("v8", "v8-as-posted")
RESTRICTEDMEM = ("v9", "v10", "bind")
MERGED = (
    "guest_memfd-6.8",
    "guest_memfd-6.12",
    "guest_memfd",
    "guest_memfd:mmap",
    "guest_memfd:mmap+init_shared",
)
# Versions merged or proposed after 6.18; tests/mount/test_proposals.py tests them.
SHARED = ("write-v7", "migratable-rfc", "live-update")
IN_PLACE = ("in-place-v8", "in-place-next", "hugetlb-rfc")
INODE = ("guest_memfd-7.2", *IN_PLACE, "migratable-rfc", "live-update")
GUEST_MEMFD = (*MERGED, "write-v7", *INODE)
BRACKETED = (*RESTRICTEDMEM, *GUEST_MEMFD)


def columns(*groups: tuple[object, tuple[str, ...]]) -> dict[str, Any]:
    """The value of each version, from (value, versions); each version occurs once."""
    found = {name: what for what, names in groups for name in names}
    assert sorted(found) == sorted(NAMES)
    assert sum(len(names) for _, names in groups) == len(NAMES)
    return found


versions = pytest.mark.parametrize("name", NAMES)


# --- the rows ---------------------------------------------------------------------


@versions
def test_row_create(name: str) -> None:
    """The magic shows the kind of file; memfd-create is the same in all versions.

    A departure: memfd_create(2) with a flag, memfd_restricted(2) and an ioctl of KVM
    were three ways to make a file; a file system has its own.
    """
    magics = columns(
        # shmem itself.
        (0x01021994, ("v7",)),
        (0x494E4143, V8S),
        # "RESM".
        (0x5245534D, RESTRICTEDMEM),
        # An anonymous inode; a file system of its own came in 6.19.
        (0x09041934, (*MERGED, "write-v7")),
        # "GMEM".
        (0x474D454D, INODE),
    )
    assert load.load(name).magic == magics[name]
    assert "memfd-create" in messages.COMMANDS


SIZES = (
    # (current, new): once, by ftruncate(2); fixed, as by creation.
    (0, PAGE, "ok", "ok"),
    (0, 0, "ok", "EINVAL"),
    (0, 1, "EINVAL", "EINVAL"),
    (0, PAGE + 512, "EINVAL", "EINVAL"),
    (PAGE, 2 * PAGE, "EPERM", "EINVAL"),
    (PAGE, PAGE, "EPERM", "EINVAL"),
    (PAGE, 0, "EPERM", "EINVAL"),
    (PAGE, 1, "EPERM", "EINVAL"),
    (1, PAGE, "EPERM", "EINVAL"),
)


@versions
def test_row_size(name: str) -> None:
    """v7 has the rule of v8: shmem_setattr() of v6 and v7, for inaccessible files.

    A departure: a guest_memfd has its size from its creation. Here the first
    truncation is the creation: with the checks that KVM_CREATE_GUEST_MEMFD makes.
    """
    kinds = columns(
        ("once", ("v7", *V8S, *RESTRICTEDMEM)),
        ("fixed", GUEST_MEMFD),
    )
    made = load.load(name)
    assert made.size == kinds[name]
    for current, new, once, fixed in SIZES:
        wanted = fixed if kinds[name] == "fixed" else once
        assert outcome(made.check_size, current, new, PAGE) == wanted, (current, new)


@versions
def test_row_notify_ops(name: str) -> None:
    """A departure: populate and the page lock are of v6; the posted v7 has neither.

    The name v7 stands for memfile_notifier as a whole.
    """
    wanted = columns(
        ([INVALIDATE, POPULATE], ("v7",)),
        ([INVALIDATE], V8S),
        ([INVALIDATE_START, INVALIDATE_END], ("v9",)),
        ([INVALIDATE_START, INVALIDATE_END, MEMORY_ERROR], ("v10", "bind")),
        # There they are internal to KVM, and have the same form.
        ([INVALIDATE_START, INVALIDATE_END], GUEST_MEMFD),
    )
    assert load.load(name).events == wanted[name]


@versions
def test_row_units(name: str) -> None:
    """A departure: v8 sends pages, as its pgoff_t says; v8-as-posted has the bug."""
    wanted = columns(
        ("bytes", ("v8-as-posted", "v9")),
        ("pages", ("v7", "v8", "v10", "bind", *GUEST_MEMFD)),
    )
    assert load.load(name).unit == wanted[name]


@versions
def test_row_which_fallocate(name: str) -> None:
    """As (punches, other calls): do they send events, also when they fail?"""
    wanted = columns(
        # "both": invalidate for the one and populate for the other.
        ((Plan(before=INVALIDATE), Plan(after=POPULATE)), ("v7",)),
        ((Plan(after=INVALIDATE, after_failure=True),) * 2, V8S),
        ((Plan(INVALIDATE_START, INVALIDATE_END, after_failure=True),) * 2, ("v9",)),
        (
            (Plan(INVALIDATE_START, INVALIDATE_END, after_failure=True), Plan()),
            ("v10", "bind", *GUEST_MEMFD),
        ),
    )
    made = load.load(name)
    assert (made.plan(punches=True), made.plan(punches=False)) == wanted[name]
    # As `inaccfs semantics` shows it.
    calls = "every fallocate" if name in (*V8S, "v9") else "punches"
    assert made.notifies == calls
    assert made.notifies_failures is (name != "v7")
    assert bool(made.plan(punches=False)) is (name in ("v7", *V8S, "v9"))


@versions
def test_row_order(name: str) -> None:
    """A departure: v7 is "before", where the table says "after".

    shmem_undo_range() of v6 and v7 calls notify_invalidate() just before it removes a
    folio ("mm/shmem: Support memfile_notifier", 6 July 2022).
    """
    wanted = columns(
        ("before", ("v7",)),
        ("after", V8S),
        ("bracket", BRACKETED),
    )
    assert load.load(name).order == wanted[name]


@versions
def test_row_lock_across(name: str) -> None:
    """SRCU and a mutex for each call are the same: the list may change in between."""
    wanted = columns(
        ("each walk", ("v7", *V8S, "v9", "v10")),
        ("the whole call", ("bind", *GUEST_MEMFD)),
    )
    assert load.load(name).list_locked == wanted[name]


@versions
def test_row_scope(name: str) -> None:
    """ "per binding", and the range in its event: the punch, or the binding's part.

    A departure: bind's xarray was walked to the end inclusive, so that a binding which
    began there got the event, too. That bug is not here.
    """
    wanted = columns(
        (("file", False, "punched"), ("v7", *V8S, "v9", "v10")),
        (("range", True, "punched"), ("bind",)),
        (("range", True, "clipped"), GUEST_MEMFD),
    )
    made = load.load(name)
    assert (made.scope, made.exclusive, made.reported) == wanted[name]


@versions
def test_row_get(name: str) -> None:
    """This includes unbound pages: EINVAL in bind, EIO in kvm_gmem_get_pfn()."""
    references = columns(
        ("locked", ("v7",)),
        ("none", ("in-place-next",)),
        ("counted", tuple({*V8S, *BRACKETED} - {"in-place-next"})),
    )
    made = load.load(name)
    assert made.references == references[name]
    wanted = errno.EIO if name in GUEST_MEMFD else errno.EINVAL
    assert made.unbound_errno == wanted


@versions
def test_row_put(name: str) -> None:
    """A departure: "caller put_page" is put-pfn, too: the caller is another process."""
    made = load.load(name)
    there = "put-pfn" in queries.semantics(made).commands
    assert there is (made.references != "none")


@versions
def test_row_alloc_on_get(name: str) -> None:
    """ "store decides": without F_SEAL_AUTO_ALLOCATE shmem of v7 allocates."""
    assert load.load(name).allocates


@versions
def test_row_migrate(name: str) -> None:
    """A departure: v8's pages do not move, as it promises; those of v8-as-posted do."""
    wanted = columns(
        (True, ("v8-as-posted", "v9")),
        (False, ("v7", "v8", "v10", "bind", *GUEST_MEMFD)),
    )
    assert load.load(name).movable is wanted[name]


@versions
def test_row_mem_failure(name: str) -> None:
    wanted = columns(
        ("unknown", ("v7", *V8S, "v9")),
        ("error", ("v10", "bind")),
        ("invalidate", GUEST_MEMFD),
    )
    made = load.load(name)
    assert made.memory_failure == wanted[name]
    commands = queries.semantics(made).commands
    assert ("memory-failure" in commands) is (wanted[name] != "unknown")


# --- what the sections below the table say ------------------------------------------


@versions
def test_reading_and_writing(name: str) -> None:
    """EPERM in shmem_file_read_iter() and shmem_write_begin() of v6 and v7."""
    assert load.load(name).read_errno == (errno.EPERM if name == "v7" else errno.EINVAL)


@versions
def test_mapping(name: str) -> None:
    """A departure: shmem_mmap() of v6 and v7 says EPERM, and here it is ENODEV."""
    wanted = columns(
        (
            "refused",
            ("v7", *V8S, *RESTRICTEDMEM, *MERGED[:3], "guest_memfd-7.2"),
        ),
        # A departure: shared pages of the latter three can be mapped in the kernel.
        ("SIGBUS", ("guest_memfd:mmap", *IN_PLACE)),
        ("shared", ("guest_memfd:mmap+init_shared", *SHARED)),
    )
    assert load.load(name).mmap == wanted[name]


FALLOCATES = (
    # (mode, offset, length): the outcomes in v8 and the versions before it; in
    # guest_memfd.
    (PUNCH, 0, PAGE, "ok", "ok"),
    (PUNCH, 1, PAGE, "EINVAL", "EINVAL"),
    (PUNCH, 0, 1, "EINVAL", "EINVAL"),
    (KEEP, 0, PAGE, "ok", "ok"),
    (KEEP, 1, 1, "ok", "EINVAL"),
    (0, 0, PAGE, "ok", "EOPNOTSUPP"),
    (0, 1, 1, "ok", "EOPNOTSUPP"),
    # The backing refuses it; guest_memfd refuses it before it checks the range.
    (ZERO_RANGE | KEEP, 0, PAGE, "ok", "EOPNOTSUPP"),
    (ZERO_RANGE | KEEP, 1, 1, "ok", "EOPNOTSUPP"),
    (ZERO_RANGE, 1, 1, "ok", "EOPNOTSUPP"),
    (PUNCH | ZERO_RANGE, 1, 1, "EINVAL", "EOPNOTSUPP"),
)


@versions
def test_calls_that_reach_the_backing(name: str) -> None:
    """kvm_gmem_fallocate(): the mode first, then the alignment, then the size."""
    made = load.load(name)
    for *call, seed, guest_memfd in FALLOCATES:
        mode, offset, length = call
        wanted = guest_memfd if name in GUEST_MEMFD else seed
        assert outcome(made.check_fallocate, mode, offset, length, PAGE) == wanted, call


@versions
def test_allocations_past_the_end(name: str) -> None:
    wanted = "refused" if name in GUEST_MEMFD else "allocated"
    assert load.load(name).past_end == wanted


@versions
def test_pages_that_an_interrupted_allocation_leaves(name: str) -> None:
    wanted = "kept" if name in GUEST_MEMFD else "undone"
    assert load.load(name).on_interrupt == wanted


@versions
def test_no_version_reports_frames(name: str) -> None:
    """Roth's tree did, but no posted version."""
    assert not load.load(name).tells_frames


def test_the_versions_are_those_of_the_issue_and_in_the_order_of_history() -> None:
    assert list(NAMES) == ["v7", *V8S, *RESTRICTEDMEM, *GUEST_MEMFD]
    assert len(set(NAMES)) == len(VERSIONS)
    assert all(version.source for version in VERSIONS)


# --- KVM ----------------------------------------------------------------------------


@versions
def test_kvm(name: str) -> None:
    """History, section 3, and the observed answers of Linux 6.12's KVM."""
    made = load.load(name)
    mainline = name in GUEST_MEMFD
    # A departure: since v10 it is shared.
    assert made.kvm_default_attribute == ("shared" if mainline else "private")
    assert made.kvm_access == ("attribute" if mainline else "guest")
    assert made.kvm_mismatch == ("every gfn" if mainline else "slots with a file")
    assert made.kvm_exit_flag == ("1 << 3" if mainline else "1 << 0")
    assert made.kvm_exit_returns == ("EFAULT" if mainline else "0")
    assert made.kvm_bad_fd == ("EBADF" if mainline else "EINVAL")
    assert made.kvm_slot_holds_file is not mainline
    assert made.kvm_file_of_one_vm is mainline
    assert made.kvm_keeps_mmio is mainline
    assert made.kvm_pre_fault == ("all" if mainline else "private")
    assert made.kvm_pre_fault_partial is mainline
    assert made.kvm_pre_fault_error == ("EFAULT" if mainline else "ENOENT")


@pytest.mark.parametrize(
    ("name", "wanted"),
    columns(
        ("refused", ("v7", *V8S, *RESTRICTEDMEM, *GUEST_MEMFD[:2])),
        ("ignored", ("guest_memfd", "guest_memfd-7.2")),
        ("served", (*MERGED[3:], *SHARED, *IN_PLACE)),
    ).items(),
)
def test_a_file_of_a_vm_without_private_memory(name: str, wanted: str) -> None:
    assert load.load(name).kvm_default_vm == wanted
