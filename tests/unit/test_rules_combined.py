"""Any rule of a file with any other: calls end, and leave nothing open."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, get_args, get_origin

from hypothesis import given, settings
from hypothesis import strategies as st

from inaccfs import errnos
from inaccfs.semantics import VERSIONS, Semantics, checking
from inaccfs.semantics.kvm import KvmRules
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH
from tests.unit.conversion_worlds import PAGE, World, world

if TYPE_CHECKING:
    from collections.abc import Callable

HUGE = 512
PAGES = 3 * HUGE

# The errnos that calls may return under any rules; 0 is success.
REFUSALS = {
    0,
    *(errno.EAGAIN, errno.EBUSY, errno.EEXIST, errno.EFAULT, errno.EINVAL, errno.EIO),
    *(errno.ENODEV, errno.ENOENT, errno.ENXIO, errno.EOPNOTSUPP, errno.EPERM),
    errnos.EHWPOISON,
}


def _values() -> dict[str, st.SearchStrategy[Any]]:
    found: dict[str, st.SearchStrategy[Any]] = {}
    for name, kind in checking.rules().items():
        if name in KvmRules.__annotations__ or name == "magic":
            continue
        if get_origin(kind) is not None:
            found[name] = st.sampled_from(get_args(kind))
        elif kind is bool:
            found[name] = st.booleans()
        else:
            found[name] = st.sampled_from([errno.EINVAL, errno.EEXIST])
    return found


chosen = st.fixed_dictionaries({}, optional=_values())
spans = st.tuples(
    st.sampled_from([0, 1, 5, HUGE - 1, HUGE, HUGE + 3, 2 * HUGE]),
    st.sampled_from([1, 2, HUGE, HUGE + 1]),
)


def _window(it: World, start: int, count: int) -> None:
    window = it.file.shared_window()
    window.write(start * PAGE + 1, bytes(min(count, 3) * PAGE))
    window.read(start * PAGE, count)


def _migrate(it: World, start: int, count: int) -> None:
    it.file.migrate(start, count)


CALLS: dict[str, Callable[[World, int, int], object]] = {
    "to private": lambda it, start, count: it.file.set_memory_attributes(
        start, count, True
    ),
    "to shared": lambda it, start, count: it.file.set_memory_attributes(
        start, count, False
    ),
    "get": lambda it, start, count: it.file.get_pfns(start, count),
    "pin": lambda it, start, count: it.file.pin_pages(start, count),
    "populate": lambda it, start, count: it.file.populate(start, count),
    "copy": lambda it, start, count: it.file.populate(start, count, it.file, 0),
    "window": _window,
    "write": lambda it, start, count: it.mount.pwrite(
        it.fd, bytes(count * PAGE), start * PAGE
    ),
    "allocate": lambda it, start, count: it.mount.fallocate(
        it.fd, FALLOC_FL_KEEP_SIZE, start * PAGE, count * PAGE
    ),
    "punch": lambda it, start, count: it.mount.fallocate(
        it.fd, PUNCH, start * PAGE, count * PAGE
    ),
    "freeze": lambda it, start, count: it.file.freeze(),
    "unfreeze": lambda it, start, count: it.file.unfreeze(),
    "migrate": _migrate,
    "poison": lambda it, start, count: it.file.memory_failure(start),
}
calls = st.tuples(st.sampled_from(sorted(CALLS)), spans)


def outcome(call: Callable[[World, int, int], object], *arguments: Any) -> int:
    """The errno of a call; 0 if it succeeds."""
    try:
        call(*arguments)
    except OSError as exc:
        return exc.errno or -1
    return 0


@given(st.sampled_from(VERSIONS), chosen, st.lists(calls, max_size=8))
@settings(max_examples=150)
def test_calls_end_and_leave_nothing_open(
    base: type[Semantics],
    rules: dict[str, Any],
    sequence: list[tuple[str, tuple[int, int]]],
) -> None:
    # What is locked until it is put would be waited for.
    if rules.get("references", base.references) == "locked":
        rules = {**rules, "references": "counted"}
    with world(base, PAGES, **rules) as it:
        it.listen(0, PAGES)
        for name, (start, count) in sequence:
            before, blocks = it.file.query_memory_attributes(), it.blocks
            it.events.clear()
            frozen = it.mount.inode(it.fd).frozen_by is not None
            number = outcome(CALLS[name], it, start, count)
            assert number in REFUSALS, (name, errnos.NAMES[number])
            inode = it.mount.inode(it.fd)
            # Each start has its end, and no list, page or turn is left locked.
            events = [event for event, *_ in it.events]
            assert events.count("start") == events.count("end")
            assert not inode.notifiers.running
            assert not inode.turn.taken
            after = it.file.query_memory_attributes()
            assert sum(row.count for row in after) == PAGES
            if name not in ("to private", "to shared"):
                assert after == before
            elif number and it.mount.semantics.atomicity == "range":
                assert (after, events) == (before, [])
            if frozen and name != "unfreeze":
                assert it.blocks == blocks
        assert os.fstat(it.fd).st_size == PAGES * PAGE
