"""Each version on a real mount: results of system calls, and events to a peer."""

from __future__ import annotations

import os
from typing import Any

import pytest

from inaccfs.semantics import VERSIONS
from tests.mount import raw, support
from tests.mount.notified import (
    BY_RANGE,
    GUEST_MEMFD,
    LONG,
    NAMES,
    PUNCH,
    SIZE,
    Event,
    guest,
)
from tests.mount.peers import peer
from tests.mount.raw import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tests.mount.support import MIB, PAGE, PATIENCE, allocated, opened, outcome

pytestmark = pytest.mark.fuse

each_version = pytest.mark.parametrize("name", NAMES)


# --- system calls ---------------------------------------------------------------


@each_version
def test_results_of_system_calls(name: str) -> None:
    """truncate(2), fallocate(2), read(2) and write(2), as a table."""
    fixed = name in GUEST_MEMFD
    again = "EINVAL" if fixed else "EPERM"
    with support.mounted(semantics=name) as mount:
        file = mount.path / "file"
        with opened(file, os.O_RDWR | os.O_CREAT) as fd:

            def fallocate(mode: int, offset: int, length: int) -> str:
                return outcome(raw.fallocate, fd, mode, offset, length)

            nothing = "EINVAL" if fixed else "ok"
            assert outcome(os.ftruncate, fd, 0) == nothing
            assert outcome(os.truncate, file, 1) == "EINVAL"
            assert fallocate(KEEP_SIZE, 0, PAGE) == nothing
            assert outcome(os.ftruncate, fd, SIZE) == "ok"
            for size in (SIZE, 2 * SIZE, PAGE, 0, 1):
                assert outcome(os.ftruncate, fd, size) == again
            assert outcome(os.open, file, os.O_RDWR | os.O_TRUNC) == again
            assert os.fstat(fd).st_size == SIZE

            assert fallocate(KEEP_SIZE, 0, 4 * PAGE) == "ok"
            assert allocated(fd) == 4 * PAGE
            assert fallocate(0, 0, PAGE) == ("EOPNOTSUPP" if fixed else "ok")
            assert fallocate(KEEP_SIZE, 1, PAGE) == ("EINVAL" if fixed else "ok")
            past = "EINVAL" if fixed else "ok"
            assert fallocate(KEEP_SIZE, SIZE - PAGE, 2 * PAGE) == past
            assert fallocate(KEEP_SIZE, 0, LONG) == past
            for mode in (ZERO_RANGE, ZERO_RANGE | KEEP_SIZE):
                for offset, length in ((0, PAGE), (1, 1), (SIZE, PAGE)):
                    assert fallocate(mode, offset, length) == "EOPNOTSUPP"

            for offset, length in ((1, PAGE), (0, 100), (PAGE, PAGE + 1)):
                assert fallocate(PUNCH, offset, length) == "EINVAL"
            assert fallocate(PUNCH, 0, 2 * LONG) == "ok"
            assert allocated(fd) == 0
            assert fallocate(PUNCH, 2 * LONG, PAGE) == "ok"
            assert os.fstat(fd).st_size == SIZE

            refusal = "EPERM" if name == "v7" else "EINVAL"
            assert outcome(os.read, fd, 8) == refusal
            assert outcome(os.write, fd, b"x") == refusal


# --- events ---------------------------------------------------------------------


def events_of(name: str, kind: str, start: int, end: int) -> list[Event]:
    """The events of a version for a punch, an allocation, or a failed one."""
    unit = PAGE if name in ("v8-as-posted", "v9") else 1
    if name == "v7":
        events = {"punch": ["INVALIDATE"], "allocation": ["POPULATE"], "failure": []}
    elif name in ("v8", "v8-as-posted"):
        events = {kind: ["INVALIDATE"]}
    else:
        bracket = ["INVALIDATE_START", "INVALIDATE_END"]
        others = bracket if name == "v9" else []
        events = {"punch": bracket, "allocation": others, "failure": others}
    return [(event, start * unit, end * unit) for event in events[kind]]


# Whether the punched memory is there at each event.
BLOCKS = {"v7": "t", "v8": "g", "v8-as-posted": "g"}


@each_version
def test_the_events_that_a_peer_gets(name: str) -> None:
    """Versions differ in units, in the order, and in events for failures."""
    with (
        support.mounted(semantics=name, size="1m") as mount,
        guest(mount, name, 64 * MIB) as it,
    ):

        def fallocate(kind: str, mode: int, start: int, end: int) -> str:
            events = events_of(name, kind, start, end)
            blocks = BLOCKS.get(name, "tg") if kind == "punch" else ""
            offset, length = start * PAGE, (end - start) * PAGE
            return it.fallocate(mode, offset, length, *events, blocks=blocks)

        assert fallocate("allocation", KEEP_SIZE, 2, 6) == "ok"
        assert allocated(it.fd) == 4 * PAGE
        assert fallocate("punch", PUNCH, 3, 5) == "ok"
        assert allocated(it.fd) == 2 * PAGE
        # More than the tmpfs has: in the loop, and in a thread.
        for pages in (512, 4096):
            assert fallocate("failure", KEEP_SIZE, 0, pages) == "ENOSPC"
            assert allocated(it.fd) == 2 * PAGE
        # A long punch sends the same events.
        assert fallocate("punch", PUNCH, 0, 4096) == "ok"
        assert allocated(it.fd) == 0
        # A call that the rules refuse sends no event.
        assert it.fallocate(PUNCH, 1, PAGE) == "EINVAL"


@pytest.mark.parametrize("name", ["v7", "v8", "v9", "v10", "bind"])
def test_a_peer_without_pages_in_the_range_gets_events_by_file_only(name: str) -> None:
    """A peer that has pages in a part of the range gets the whole range."""
    with support.mounted(semantics=name) as mount, guest(mount, name, PAGE) as it:
        events = events_of(name, "punch", 0, 8)
        assert it.fallocate(PUNCH, 0, 8 * PAGE, *events) == "ok"
        events = [] if name in BY_RANGE else events_of(name, "punch", 1, 8)
        assert it.fallocate(PUNCH, PAGE, 7 * PAGE, *events) == "ok"


@pytest.mark.parametrize("name", ["bind", "guest_memfd"])
def test_bindings_get_the_whole_range_or_their_part(name: str) -> None:
    clipped = name == "guest_memfd"
    with support.mounted(semantics=name) as mount, guest(mount, name) as it:
        # Another peer, so that each gets its own events.
        it.shim.do("unbind", notifier=1)
        with peer(mount.control) as other:
            mine = it.shim.do("bind", file="/guest", start=0, end=4)["notifier"]
            yours = other.do("bind", file="/guest", start=4, end=8)["notifier"]
            call = it.pool.submit(outcome, raw.fallocate, it.fd, PUNCH, PAGE, SIZE)
            for wanted in ("INVALIDATE_START", "INVALIDATE_END"):
                for shim, number, first, end in (
                    (it.shim, mine, 1, 4),
                    (other, yours, 4, 8),
                ):
                    event = shim.event()
                    assert (event["event"], event["notifier"]) == (wanted, number)
                    at = (event["start"], event["end"])
                    assert at == ((first, end) if clipped else (1, 17))
                    shim.done(event)
            assert call.result(PATIENCE) == "ok"
            # Past both there is no event.
            assert it.fallocate(PUNCH, 8 * PAGE, PAGE) == "ok"
            # A peer that unbinds gets no more events.
            other.do("unbind", notifier=yours)
            assert it.fallocate(PUNCH, 4 * PAGE, PAGE) == "ok"


def test_populate_is_sent_for_every_allocation_that_succeeds() -> None:
    """notify_populate() of shmem_fallocate(), v6."""
    with support.mounted(semantics="v7") as mount, guest(mount, "v7") as it:
        for mode, start, end in ((KEEP_SIZE, 0, 2), (0, 1, 20), (KEEP_SIZE, 0, 2048)):
            events = ("POPULATE", start, end)
            offset, length = start * PAGE, (end - start) * PAGE
            assert it.fallocate(mode, offset, length, events) == "ok"
        # This is so for parts of pages, too.
        assert it.fallocate(KEEP_SIZE, 100, PAGE, ("POPULATE", 0, 2)) == "ok"
        assert it.fallocate(ZERO_RANGE | KEEP_SIZE, 0, PAGE) == "EOPNOTSUPP"


def test_a_locked_page_holds_up_its_punch_and_no_other_call() -> None:
    with support.mounted(semantics="v7") as mount, guest(mount, "v7") as it:
        pfn = it.shim.do("get-pfn", file="/guest", offset=3)["pfn"]
        assert it.fallocate(PUNCH, 0, PAGE, ("INVALIDATE", 0, 1)) == "ok"
        with peer(mount.control) as other:
            for shim in (it.shim, other):
                refusal = shim.do("get-pfn", file="/guest", offset=3)
                assert refusal.startswith("EAGAIN: of the pages 3 to 4 some are locked")
            call = it.pool.submit(outcome, raw.punch, it.fd, 0, 4 * PAGE)
            # Its order is "before", and no event is sent as long as the page is locked.
            support.ask_until(lambda: other.do("query-stats")["punches"] == 2)
            assert (it.shim.events, call.done()) == ([], False)
            assert it.shim.do("put-pfn", file="/guest", pfn=pfn) == {}
            it.shim.done(it.shim.event())
            assert call.result(PATIENCE) == "ok"


# --- commands -------------------------------------------------------------------


@each_version
def test_the_commands_of_each_version(name: str) -> None:
    by_range = name in BY_RANGE
    with support.mounted(semantics=name) as mount, guest(mount, name) as it:
        shim = it.shim
        # query-semantics returns exactly the rules of the class.
        (rules,) = (made() for made in VERSIONS if made.name == name)
        reply = shim.do("query-semantics")
        commands = set(reply.pop("commands"))
        assert reply == {rule: getattr(rules, rule) for rule in reply}
        assert len(reply) >= 16

        pair = {"bind", "unbind"}
        other = {"register-notifier", "unregister-notifier"}
        assert commands & (pair | other) == (pair if by_range else other)
        arguments: dict[str, dict[str, Any]] = {
            "bind": {"file": "/guest", "start": 20, "end": 30},
            "unbind": {"notifier": 1},
            "register-notifier": {"file": "/guest"},
            "unregister-notifier": {"notifier": 1},
        }
        for command in other if by_range else pair:
            assert shim.do(command, **arguments[command]).startswith("EOPNOTSUPP: ")

        knows_poison = name in ("v10", *BY_RANGE)
        assert ("memory-failure" in commands) is knows_poison
        if not knows_poison:
            refusal = shim.do("memory-failure", file="/guest", offset=3)
            assert refusal.startswith("EOPNOTSUPP: ")
            assert "pfn" in shim.do("get-pfn", file="/guest", offset=3)


@pytest.mark.parametrize("name", ["v10", "bind", "guest_memfd"])
def test_poison(name: str) -> None:
    """get-pfn is EHWPOISON until the punch; the new page is good."""
    with support.mounted(semantics=name) as mount, guest(mount, name) as it:
        shim = it.shim
        assert "pfn" in shim.do("get-pfn", file="/guest", offset=3)
        shim.begin("memory-failure", file="/guest", offset=3)
        if name == "guest_memfd":
            for wanted in ("INVALIDATE_START", "INVALIDATE_END"):
                event = shim.event()
                assert (event["event"], event["start"], event["end"]) == (wanted, 3, 4)
                shim.begin("invalidate-done", notifier=1, sequence=event["sequence"])
                assert shim.answer() == {"return": {}}
            assert shim.answer() == {"return": {}}
        else:
            assert shim.answer() == {"return": {}}
            event = shim.event()
            assert (event["event"], event["start"]) == ("MEMORY_ERROR", 3)
        for at, count in ((3, 1), (0, 8)):
            refusal = shim.do("get-pfn", file="/guest", offset=at, count=count)
            assert refusal == "EHWPOISON: page 3 is poisoned: punch it"
        assert "pfn" in shim.do("get-pfn", file="/guest", offset=4)
        events = events_of(name, "punch", 3, 4)
        assert it.fallocate(PUNCH, 3 * PAGE, PAGE, *events) == "ok"
        assert "pfn" in shim.do("get-pfn", file="/guest", offset=3)


def test_a_poisoned_frame_never_comes_back() -> None:
    """It stays unused after a punch or a delete. A hole has no frame to poison."""
    with (
        support.mounted(
            semantics="v10", pfn_source="simulated", options="simulated-memory=64k"
        ) as mount,
        peer(mount.control) as shim,
    ):

        def pfns(file: str, count: int) -> set[int]:
            got = shim.do("get-pfn", file=file, offset=0, count=count)["extents"]
            for one in got:
                shim.do("put-pfn", file=file, pfn=one["pfn"], count=one["count"])
            return {one["pfn"] + at for one in got for at in range(one["count"])}

        def poisoned() -> int:
            """Poison the first page of /guest; return its frame."""
            refusal = shim.do("memory-failure", file="/guest", offset=0)
            assert refusal.startswith("ENXIO: ")
            (bad,) = pfns("/guest", 1)
            assert shim.do("memory-failure", file="/guest", offset=0) == {}
            return bad

        def punch() -> None:
            with opened(path) as fd:
                raw.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, MIB)

        path = support.new_file(mount.path / "guest", MIB)
        bad = {poisoned()}
        punch()
        # There are 16 frames.
        assert not bad & pfns("/guest", 15)
        punch()
        bad.add(poisoned())
        path.unlink()
        # Its frames are free once the kernel has sent FORGET.
        support.ask_until(lambda: shim.do("query-stats")["fetched"] == 0)
        support.new_file(mount.path / "other", MIB)
        assert len(bad) == 2
        assert not bad & pfns("/other", 14)
        reply = shim.do("get-pfn", file="/other", offset=14)
        assert reply.startswith("ENOMEM")
        assert shim.do("query-stats")["pages_poisoned"] == 2


@pytest.mark.parametrize(
    ("name", "errno"), [("bind", "EINVAL"), ("guest_memfd", "EIO")]
)
def test_a_page_that_is_not_bound_is_not_got(name: str, errno: str) -> None:
    with support.mounted(semantics=name) as mount, guest(mount, name) as it:
        assert "pfn" in it.shim.do("get-pfn", file="/guest", offset=3)
        assert it.shim.do("unbind", notifier=1) == {}
        refusal = it.shim.do("get-pfn", file="/guest", offset=3)
        assert refusal.startswith(f"{errno}: nobody is bound")
