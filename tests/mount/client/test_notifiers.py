"""Notifiers of the blocking client against real mounts: real punches wait for them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import pytest

import inaccfs
from inaccfs.client import ConnectionLostError
from tests.mount import support
from tests.mount.client.files import guest, punch
from tests.mount.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.client import Client, File

pytestmark = pytest.mark.fuse


def test_a_punch_waits_for_the_callback(memory: File, fd: int) -> None:
    entered, may_return = threading.Event(), threading.Event()

    def callback(start: int, end: int) -> None:
        entered.set()
        assert may_return.wait(PATIENCE)

    with memory.register_notifier(callback), ThreadPoolExecutor(1) as pool:
        punching = pool.submit(punch, fd)
        assert entered.wait(PATIENCE)
        # The client and others go on meanwhile.
        assert memory.get_pfn(1)
        assert not punching.done()
        may_return.set()
        punching.result(PATIENCE)


def test_a_callback_may_use_the_client(memory: File, fd: int) -> None:
    """The callback gets new pages in the punched range while the punch runs."""
    found: list[int] = []
    memory.get_pfn(3)

    def callback(start: int, end: int) -> None:
        found.append(memory.get_pfn(start).pfn)

    with memory.register_notifier(callback):
        punch(fd, 3)
    assert found == [memory.get_pfn(3).pfn]


def test_an_exception_of_a_callback_is_raised_by_the_block(
    memory: File, fd: int
) -> None:
    def fail(start: int, end: int) -> None:
        raise ZeroDivisionError(f"{start} {end}")

    with (
        pytest.raises(ZeroDivisionError, match="3 5"),
        memory.register_notifier(fail),
    ):
        punch(fd, 3, 2)
    assert memory.query().notifiers == 0


def test_a_callback_may_unregister_itself_and_others(
    shim: Client, memory: File, fd: int
) -> None:
    events: list[str] = []

    def callback(start: int, end: int) -> None:
        events.append("own")
        own.unregister()
        for other in others:
            other.unregister()

    own = memory.register_notifier(callback)
    others = [memory.register_notifier(lambda *_: events.append("o")) for _ in range(3)]
    punch(fd)
    punch(fd)
    assert events == ["own"]
    for notifier in (own, *others):
        notifier.unregister()
    assert shim.query_notifiers() == []


def test_registering_while_a_file_is_punched_delays_no_other_call(
    shim: Client, memory: File, fd: int
) -> None:
    """A registration waits for the punch, and the answer must overtake it."""
    entered, may_return = threading.Event(), threading.Event()

    def callback(start: int, end: int) -> None:
        entered.set()
        assert may_return.wait(PATIENCE)
        own.unregister()

    own = memory.register_notifier(callback)
    with ThreadPoolExecutor(2) as pool:
        punching = pool.submit(punch, fd)
        assert entered.wait(PATIENCE)
        registering = pool.submit(memory.register_notifier, lambda *_: None)
        support.ask_until(lambda: len(shim.query_notifiers()) == 2)
        may_return.set()
        punching.result(PATIENCE)
        registering.result(PATIENCE).unregister()
    own.unregister()


def test_a_punch_inside_the_callback_ends_with_the_timeout() -> None:
    """As the docstring says, the kernel lets no second punch of the file begin."""
    with (
        inaccfs.mounted(ack_timeout=0.3) as mount,
        guest(mount) as fd,
        inaccfs.connect(mount.path) as shim,
    ):
        notifier = shim.file("/guest0").register_notifier(lambda *_: punch(fd, 5))
        punch(fd)
        with pytest.raises(ConnectionLostError, match="log says why"):
            notifier.unregister()
        assert "no answer" in mount.log.read_text()
        # Commands use another connection, and the client may register again.
        called = threading.Event()
        notifier = shim.file("/guest0").register_notifier(lambda *_: called.set())
        punch(fd)
        assert called.wait(PATIENCE)
        # On a busy machine this answer may be late, too.
        with suppress(ConnectionLostError):
            notifier.unregister()


def test_many_notifiers_and_threads(shim: Client, memory: File, fd: int) -> None:
    counts = [0] * 20

    def count(number: int) -> Callable[[int, int], None]:
        def callback(start: int, end: int) -> None:
            counts[number] += 1
            memory.put_pfn(memory.get_pfn(start).pfn)

        return callback

    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        for number in range(20):
            stack.enter_context(memory.register_notifier(count(number)))
        for done in [pool.submit(punch, fd, number) for number in range(10)]:
            done.result(PATIENCE)
    assert counts == [10] * 20
    assert shim.query_notifiers() == []
