"""Row 10: what a punch costs with many notifiers, in a list or found by range."""

from __future__ import annotations

import os
import re
import socket
import statistics
import time
from contextlib import ExitStack
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.experiments import chart, parts
from inaccfs.experiments.lab import Experiment
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.semantics import V8

if TYPE_CHECKING:
    from inaccfs.experiments.lab import Bench, Lab

_NUMBERS: Final = (1, 10, 100, 1000, 10_000)
# The punches of one row send at most so many events in all.
_EVENTS: Final = 20_000
_LIMITS: Final = ("limit=notifiers=20000", "limit=output=64000000")


class _Taken(NamedTuple):
    """The median time of a punch, in µs, and how many notifiers it reached."""

    time: float
    reached: float

    @property
    def shown(self) -> tuple[int, int]:
        return round(self.time), round(self.reached)


class Tree(V8):
    """v8, but notifiers are found by page, as with restrictedmem_bind()."""

    scope = "range"


# --- notifiers ----------------------------------------------------------------------

_EVENT: Final = re.compile(rb'"notifier":(\d+).*"sequence":(\d+)')
_ANSWER: Final = (
    b'{"execute":"invalidate-done","arguments":{"notifier":%b,"sequence":%b}}\n'
)


class _Peer:
    """All notifiers, on one connection. Answers all events read with one write."""

    def __init__(self, bench: Bench, path: str, *, binds: bool, aliases: bool) -> None:
        self._path: Final = path
        self._binds: Final = binds
        # Whether all notifiers are bound to one page.
        self._aliases: Final = aliases
        self._socket: Final = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(bench.mount.control))
        self._notifiers = 0
        # One item for each registered notifier.
        self._registered: Final = Semaphore(0)
        self._thread: Final = Thread(target=self._serve)
        self._thread.start()
        self._socket.sendall(b'{"execute":"qmp_capabilities"}\n')

    def register(self, notifiers: int) -> None:
        """Register notifiers until there are so many."""
        new = range(self._notifiers, notifiers)
        self._socket.sendall(b"".join(map(self._request, new)))
        for _ in new:
            if not self._registered.acquire(timeout=parts.PATIENCE):
                raise TimeoutError("the daemon does not register notifiers")
        self._notifiers = notifiers

    def _request(self, number: int) -> bytes:
        command, where = "register-notifier", ""
        if self._binds:
            page = 0 if self._aliases else number
            command, where = "bind", f',"start":{page},"end":{page + 1}'
        arguments = f'{{"file":"{self._path}"{where}}}'
        return f'{{"execute":"{command}","arguments":{arguments}}}\n'.encode()

    def _serve(self) -> None:
        rest = b""
        while data := self._socket.recv(1 << 18):
            *lines, rest = (rest + data).split(b"\n")
            answers = []
            for line in lines:
                if event := _EVENT.search(line):
                    answers.append(_ANSWER % event.groups())
                elif b'"notifier"' in line:
                    self._registered.release()
            if answers:
                self._socket.sendall(b"".join(answers))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def _measure(bench: Bench, *, binds: bool, aliases: bool = False) -> list[_Taken]:
    """Time punches of a page that one notifier is bound to, or all with *aliases*."""
    path = f"/{'aliases' if aliases else 'notifiers'}"
    fd = os.open(f"{bench.mount.path}{path}", os.O_RDWR | os.O_CREAT)
    found = []
    with ExitStack() as stack:
        stack.callback(os.close, fd)
        os.ftruncate(fd, _NUMBERS[-1] * PAGE_SIZE)
        peer = _Peer(bench, path, binds=binds, aliases=aliases)
        stack.callback(peer.close)
        for number in _NUMBERS:
            peer.register(number)
            concerned = number if aliases or not binds else 1
            # The first punch is not counted.
            times = 1 + max(min(_EVENTS // concerned, 100), 3)
            events = bench.shim.query_stats().events
            samples = [_punch(fd) for _ in range(times)]
            reached = (bench.shim.query_stats().events - events) / times
            found.append(_Taken(statistics.median(samples[1:]), reached))
    return found


def _punch(fd: int) -> float:
    """The time of a punch in µs. The page is a hole, so no memory is freed."""
    start = time.perf_counter_ns()
    parts.punch(fd, 1)
    return (time.perf_counter_ns() - start) / 1e3


def _run(lab: Lab) -> None:
    series: dict[str, list[_Taken]] = {}
    for semantics in lab.semantics:
        with lab.bench(semantics, size="64m", options=_LIMITS) as bench:
            rules = bench.shim.query_semantics()
            binds = rules.by_range
            name = f"{bench.semantics}, {'a page each' if binds else 'a list'}"
            series[name] = _measure(bench, binds=binds)
            if binds and not rules.exclusive:
                name = f"{bench.semantics}, one page"
                series[name] = _measure(bench, binds=True, aliases=True)
    lab.table(
        ["notifiers", *(word for name in series for word in (name, "reached"))],
        [
            [number, *(word for each in series.values() for word in each[at].shown)]
            for at, number in enumerate(_NUMBERS)
        ],
    )
    curves = {
        name: [
            (number, taken.time) for number, taken in zip(_NUMBERS, each, strict=True)
        ]
        for name, each in series.items()
    }
    lab.draw(chart.log_log(curves, "notifiers of the file", "a punch of a page, µs"))


EXPERIMENT: Final = Experiment(
    name="bindings",
    question="What does a punch cost with 10,000 notifiers, in a list or by range?",
    run=_run,
    semantics=("v8", f"{__file__}:Tree"),
    exact=False,
    draws=True,
)
