"""The shim in one process: what its client may rely on, threads, and the end."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from inaccfs.client import ConnectionLostError
from inaccfs.client.notifying import Options
from inaccfs.inprocess import Mount
from inaccfs.semantics import V7, V8, V9, V10, Bind, GuestMemfd, Semantics
from inaccfs.shim.frameoptions import SimulatedMemory
from tests.unit.fakes import refused
from tests.unit.one_file import PAGE, one_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

    from inaccfs.client.notifying import Callback
    from inaccfs.inprocess import Due, File, Notifier

PATIENCE = 60.0
# Each page has a folio of its own.
SMALL = SimulatedMemory(order=0)


class Events(Options, total=False):
    """All callbacks that `register_notifier` accepts."""

    invalidate: Callback


def events(seen: list[tuple[str, int, int]]) -> Events:
    """A callback for each event, which notes it."""

    def note(name: str) -> Callable[[int, int], None]:
        return lambda start, end: seen.append((name, start, end))

    return {
        "invalidate": note("invalidate"),
        "invalidate_start": note("invalidate_start"),
        "invalidate_end": note("invalidate_end"),
        "error": note("error"),
    }


def listen(file: File, seen: list[tuple[str, int, int]]) -> Notifier:
    if file.client.query_semantics().scope == "range":
        return file.bind(0, 16, **events(seen))
    return file.register_notifier(**events(seen))


# --- events ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("semantics", "expected"),
    [
        (V7(), ["invalidate"]),
        (V8(), ["invalidate"]),
        (V10(), ["invalidate_start", "invalidate_end"]),
        (Bind(), ["invalidate_start", "invalidate_end"]),
        (GuestMemfd(), ["invalidate_start", "invalidate_end"]),
    ],
    ids=lambda each: getattr(each, "name", ""),
)
@pytest.mark.parametrize("pages", [2, 2048], ids=["at once", "in a task"])
def test_a_punch_sends_the_events_of_the_rules_and_removes_the_pages(
    semantics: Semantics, expected: list[str], pages: int
) -> None:
    seen: list[tuple[str, int, int]] = []
    with one_file(semantics, memory=SMALL, pages=4096) as it:
        file = it.file
        notifier = listen(file, seen)
        pfn = file.get_pfn(3).pfn
        if semantics.keeps_references:
            file.put_pfn(pfn)
        it.punch(0, 2 + pages)
        end = 16 if semantics.reported == "clipped" and pages > 16 else 2 + pages
        assert seen == [(name, 0, end) for name in expected]
        assert it.client.query_pins().extents == []
        notifier.unregister()
        it.punch(0, 2)
        assert len(seen) == len(expected)


def test_poison_is_reported_as_an_error() -> None:
    seen: list[tuple[str, int, int]] = []
    with one_file(V10()) as it:
        file = it.file
        listen(file, seen)
        file.put_pfn(file.get_pfn(3).pfn)
        file.memory_failure(3)
        assert seen == [("error", 3, 4)]


def test_frames_that_are_taken_and_freed_are_heard_of() -> None:
    heard: list[tuple[bool, int, int]] = []

    def watch(taken: bool, start: int, count: int) -> None:
        heard.append((taken, start, count))

    with one_file(memory=SMALL, on_frames=watch) as it:
        file = it.file
        pfn = file.get_pfn(3).pfn
        it.punch(0, 16)
        assert heard == [(True, 0, 1)], "it is still referenced"
        file.put_pfn(pfn)
        assert heard == [(True, 0, 1), (False, 0, 1)]


@pytest.mark.parametrize("end", ["close", "disconnect"])
def test_frames_are_freed_when_the_last_client_that_refers_to_them_ends(
    end: str,
) -> None:
    freed: list[int] = []

    def watch(is_taken: bool, frame: int, _: int) -> None:
        if not is_taken:
            freed.append(frame)

    with one_file(memory=SMALL, on_frames=watch) as it:
        client = it.client
        it.file.get_pfn(3)
        it.punch(0, 16)
        assert freed == []
        if end == "close":
            client.close()
        else:
            with it.mount.loop.inside():
                client.disconnect("a test")
        assert len(freed) == 1


@pytest.mark.parametrize("semantics", [V8(), V10()], ids=["v8", "v10"])
@pytest.mark.parametrize("how", ["punch", "truncate"])
def test_on_change_is_called_before_the_change(semantics: Semantics, how: str) -> None:
    seen: list[tuple[str, int, int]] = []
    changes: list[tuple[int, int, int, int]] = []

    class Free(type(semantics)):  # type: ignore[misc] # as a test's table has it
        size = "free"

    def on_change(_: int, offset: int, length: int) -> None:
        ((_, file),) = it.mount.files()
        assert file.pages.memory is not None
        changes.append((offset, length, len(seen), file.pages.memory.frames.pages))

    with one_file(Free(), memory=SMALL, on_change=on_change) as it:
        file = it.file
        listen(file, seen)
        file.put_pfn(file.get_pfn(15).pfn)
        if how == "punch":
            it.punch(8, 16)
        else:
            it.mount.ftruncate(it.fd, 8 * PAGE)
        # A start has been sent by then, and the page is still there.
        starts = int(semantics.order == "bracket")
        assert changes == [(8 * PAGE, 8 * PAGE, starts, 1)]


# --- callbacks ------------------------------------------------------------------------


def test_a_callback_may_ask_the_client() -> None:
    found: list[int] = []
    with one_file() as it:
        file = it.file
        file.register_notifier(lambda start, end: found.append(file.get_pfn(end).pfn))
        it.punch(0, 1)
        file.put_pfn(found[0])


def test_a_callback_may_unregister_itself() -> None:
    seen: list[int] = []
    with one_file(V10()) as it:
        file = it.file

        def leave(start: int, end: int) -> None:
            seen.append(start)
            notifier.unregister()

        notifier = file.register_notifier(
            invalidate_start=leave, invalidate_end=lambda *_: seen.append(-1)
        )
        it.punch(2, 3)
        it.punch(4, 5)
        assert seen == [2]
        assert not notifier.registered


def test_an_exception_of_a_callback_is_raised_by_unregister() -> None:
    """As in a client: the caller that punches does not see it."""
    with one_file() as it:
        file = it.file
        notifier = file.register_notifier(lambda *_: 1 // 0)
        it.punch(0, 1)
        it.punch(0, 1)
        with pytest.raises(ZeroDivisionError):
            notifier.unregister()
        notifier.unregister()


def test_events_may_be_delivered_later(pool: ThreadPoolExecutor) -> None:
    """The test's scheduler delivers them, and a punch waits for the answer."""
    due: list[Due] = []
    come = threading.Event()

    def deliver(each: Due) -> None:
        due.append(each)
        come.set()

    seen: list[tuple[str, int, int]] = []
    with one_file() as it:
        listen(it.mount.connect(deliver).file(it.fd), seen)
        running = pool.submit(it.punch, 0, 1)
        assert come.wait(PATIENCE)
        assert not running.done()
        due[0].call()
        assert seen == [("invalidate", 0, 1)]
        assert not running.done()
        due[0].answer()
        running.result(PATIENCE)


# --- several threads ------------------------------------------------------------------


def test_others_go_on_while_a_callback_runs(pool: ThreadPoolExecutor) -> None:
    """Except for calls that change the list of notifiers."""
    inside, go = threading.Event(), threading.Event()

    def hold(start: int, end: int) -> None:
        inside.set()
        assert go.wait(PATIENCE)

    with one_file() as it:
        file = it.file
        notifier = file.register_notifier(hold)
        running = pool.submit(it.punch, 0, 1)
        assert inside.wait(PATIENCE)
        file.put_pfn(file.get_pfn(3).pfn)
        late = pool.submit(file.register_notifier, lambda *_: None)
        leaving = pool.submit(notifier.unregister)
        assert not any(each.done() for each in (running, late, leaving))
        go.set()
        for each in (running, late, leaving):
            each.result(PATIENCE)
        assert it.client.notifiers == {late.result()}


@pytest.mark.parametrize("puts", [True, False])
def test_a_punch_waits_for_page_locks_and_then_evicts(
    pool: ThreadPoolExecutor, *, puts: bool
) -> None:
    """v7."""
    with one_file(V7(), ack_seconds=PATIENCE if puts else 0.05) as it:
        file, other = it.file, it.mount.connect()
        pfn = file.get_pfn(3).pfn
        with refused(errno.EAGAIN, "locked"):
            other.file(it.fd).get_pfn(3)
        running = pool.submit(it.punch, 3, 4)
        if puts:
            file.put_pfn(pfn)
        running.result(PATIENCE)
        assert (it.client.lost is None) is puts
        if not puts:
            with pytest.raises(ConnectionLostError, match="keeps pages locked"):
                file.get_pfn(3)


# --- what is refused ------------------------------------------------------------------


def test_rules_are_those_of_the_mount() -> None:
    with one_file(V9()) as it:
        with refused(errno.EINVAL):
            it.mount.memfd_create("file", 100)
        file = it.file
        with refused(errno.EPERM):
            it.mount.ftruncate(it.fd, PAGE)
        with refused(errno.EOPNOTSUPP):
            file.bind(0, 1, lambda *_: None)
        with refused(errno.EINVAL, "past the end"):
            file.get_pfn(16)
        file.close()
        with refused(errno.EBADF, "closed"):
            file.get_pfn(0)


def test_a_range_that_is_none_is_refused() -> None:
    with one_file(GuestMemfd()) as it:
        file = it.file
        for start, end in ((3, 3), (8, 17)):
            with refused(errno.EINVAL, "no pages"):
                file.bind(start, end, lambda *_: None)
        file.bind(0, 8, lambda *_: None)
        with pytest.raises(OSError, match="bound already"):
            file.bind(7, 9, lambda *_: None)


def test_nothing_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    with Mount() as mount:
        fd = mount.memfd_create("file", 16 * PAGE)
        client = mount.connect()
        client.file(fd).get_pfn(0)
        client.close()
        os.close(fd)
    assert os.listdir("/proc/self/fd") == before


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The example of docs/simulated-kvm.md."""
    page = Path(__file__).parents[2] / "docs/simulated-kvm.md"
    text = page.read_text()
    start = text.index("    import os\n    from inaccfs.inprocess")
    program = dedent(text[start : text.index("\n\n- The fd", start)])
    exec(program, {})
    assert capsys.readouterr().out == "None\n"
