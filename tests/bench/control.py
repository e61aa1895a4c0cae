"""The cost of a command of the control socket, beside a command of QEMU and an echo.

usage: python -m tests.bench.control [--cpu N] [--rounds N] [--calls N]

All servers run at the same time, and they and the client stay on one CPU. Each round
asks them in turn, and a clock is read around each call:

    get-pfn               of a page that has been fetched, by fdname: a blocking socket
                          and bytes made beforehand
    get-pfn, by path      the same by "/guest", which is looked up each time
    File.get_pfn          the same by fdname, through inaccfs.connect()
    query-version, QEMU   of qemu-storage-daemon, over a blocking socket
    echo, trio            a server in trio that does nothing: it receives as many bytes
                          as get-pfn takes, and sends as many as get-pfn returns

p50 and p99 are those of a round, the median over the rounds, in µs. A ratio is taken
within a round, and then the median over the rounds. Any other process that keeps this
CPU busy spoils the figures.

Needs: qemu-storage-daemon (Debian: qemu-system-common, later qemu-utils); without it
that row is left out.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

import inaccfs
from tests.bench import harness
from tests.bench.harness import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM_UP = 300
QEMU_TARGET, ECHO_TARGET = 5.0, 1.5
TIMEOUT = 10.0
OURS, QEMU, ECHO = "get-pfn", "query-version, QEMU", "echo, trio"

# Spawned, not forked: the echo has none of this process's descriptors.
processes = multiprocessing.get_context("spawn")


class Raw:
    """A peer of a QMP server: a blocking socket, and only what is needed."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)
        self._read = self.socket.makefile("rb")
        json.loads(self._read.readline())
        self.execute("qmp_capabilities")
        # A timeout would cost a poll(2) for each call.
        self.socket.settimeout(None)

    def execute(
        self, command: str, fd: int | None = None, /, **arguments: object
    ) -> Any:
        """Execute a command; return what it returns."""
        fds = [] if fd is None else [fd]
        socket.send_fds(self.socket, [request(command, **arguments)], fds)
        reply = json.loads(self._read.readline())
        if "return" not in reply:
            raise RuntimeError(f"{command}: {reply}")
        return reply["return"]

    def close(self) -> None:
        """Hang up."""
        self._read.close()
        self.socket.close()


def request(command: str, **arguments: object) -> bytes:
    """A message. Members are named as they are sent."""
    message = {"execute": command, "arguments": arguments, "id": 1}
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def exchange(connection: socket.socket, message: bytes) -> Callable[[], bytes]:
    """A function that sends *message* and receives the reply, in one piece."""
    send, receive = connection.send, connection.recv

    def call() -> bytes:
        send(message)
        return receive(4096)

    return call


# --- servers to compare with ----------------------------------------------------------


@contextmanager
def qemu(program: str, cpu: int) -> Iterator[Raw]:
    """qemu-storage-daemon with nothing but its monitor, on one CPU."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        path = f"{directory}/monitor"
        # It gets the listening socket, so there is nothing to wait for.
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen()
        chardev = f"socket,id=monitor,fd={listener.fileno()},server=on,wait=off"
        command = [program, "--chardev", chardev, "--monitor", "chardev=monitor"]
        server = subprocess.Popen(command, pass_fds=[listener.fileno()])
        stack.callback(harness.stop, server)
        stack.callback(server.terminate)
        raw = Raw(path)
        stack.callback(raw.close)
        harness.pin(server.pid, cpu)
        yield raw


def serve_echo(listener: socket.socket, reply: bytes) -> None:
    """Answer each message with *reply*, until the end."""

    async def serve(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            await stream.send_all(reply)

    async def main() -> None:
        await trio.serve_listeners(
            serve, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        )

    trio.run(main)


@contextmanager
def echo(reply: bytes, cpu: int) -> Iterator[socket.socket]:
    """A connection to a server of its own process that answers with *reply*."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{directory}/echo")
        listener.listen()
        server = processes.Process(target=serve_echo, args=(listener, reply))
        server.start()
        stack.callback(server.join)
        stack.callback(server.kill)
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.settimeout(TIMEOUT)
        connection.connect(f"{directory}/echo")
        # After the first reply all its threads exist.
        exchange(connection, b"{}\n")()
        connection.settimeout(None)
        assert server.pid is not None
        harness.pin(server.pid, cpu)
        yield connection


# --- the measurement ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Round:
    """The times of one kind of call in one round, in µs."""

    p50: float
    p99: float


def measure(call: Callable[[], object], count: int) -> Round:
    """Make *count* calls."""
    now = time.perf_counter_ns
    samples = []
    for _ in range(count):
        start = now()
        call()
        samples.append(now() - start)
    return Round(
        harness.quantile(samples, 0.5) / 1e3, harness.quantile(samples, 0.99) / 1e3
    )


def row(name: str, rounds: dict[str, list[Round]]) -> list[str]:
    """One line of the table."""

    def against(other: str, ratio: Callable[[float, float], float]) -> str:
        if other not in rounds or name == other:
            return ""
        pairs = zip(rounds[name], rounds[other], strict=True)
        return f"{statistics.median(ratio(one.p50, two.p50) for one, two in pairs):.2f}"

    return [
        name,
        f"{statistics.median(each.p50 for each in rounds[name]):.1f}",
        f"{statistics.median(each.p99 for each in rounds[name]):.1f}",
        against(QEMU, lambda ours, theirs: theirs / ours),
        against(ECHO, lambda ours, theirs: ours / theirs),
    ]


def add_ours(
    calls: dict[str, Callable[[], object]], stack: ExitStack, mount: inaccfs.Mount
) -> int:
    """Add the calls of inaccfs; return how many bytes the first returns."""
    fd = os.open(f"{mount.path}/guest", os.O_RDWR | os.O_CREAT, 0o600)
    stack.callback(os.close, fd)
    os.ftruncate(fd, 1024 * PAGE)
    raw = Raw(str(mount.control))
    stack.callback(raw.close)
    raw.execute("getfd", fd, fdname="guest")
    expected = raw.execute("get-pfn", file="guest", offset=0)
    by_fdname = exchange(raw.socket, request("get-pfn", file="guest", offset=0))
    by_path = exchange(raw.socket, request("get-pfn", file="/guest", offset=0))
    for call in (by_fdname, by_path):
        assert json.loads(call())["return"] == expected
    client = stack.enter_context(inaccfs.connect(mount.control))
    get_pfn = partial(client.file(fd).get_pfn, 0)
    assert get_pfn() == (expected["pfn"], expected["order"])
    calls |= {OURS: by_fdname, "get-pfn, by path": by_path, "File.get_pfn": get_pfn}
    return len(by_fdname())


def main() -> None:
    """Start all, measure, print the table."""
    parser = harness.parser(__doc__)
    parser.add_argument("--cpu", type=int, default=0, help="the CPU that all share")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=2000, help="per round")
    options = parser.parse_args()
    harness.begin()
    harness.pin(os.getpid(), options.cpu)

    calls: dict[str, Callable[[], object]] = {}
    rounds: dict[str, list[Round]] = {}
    with ExitStack() as stack:
        mount = stack.enter_context(inaccfs.mounted(size="64m"))
        harness.pin(mount.pid, options.cpu)
        length = add_ours(calls, stack, mount)
        if program := shutil.which("qemu-storage-daemon"):
            monitor = stack.enter_context(qemu(program, options.cpu))
            calls[QEMU] = exchange(monitor.socket, request("query-version"))
        else:
            print("no qemu-storage-daemon: apt-get install qemu-system-common")
        ours = request("get-pfn", file="guest", offset=0)
        connection = stack.enter_context(echo(b"x" * length, options.cpu))
        calls[ECHO] = exchange(connection, ours)

        gc.disable()
        for call in calls.values():
            measure(call, WARM_UP)
        rounds = {name: [] for name in calls}
        for _ in range(options.rounds):
            for name, call in calls.items():
                rounds[name].append(measure(call, options.calls))

    harness.print_table(
        f"One command, µs, all on CPU {options.cpu}"
        f" ({options.rounds} rounds of {options.calls} calls)",
        ["", "p50", "p99", "QEMU / it", "it / echo"],
        [row(name, rounds) for name in rounds],
    )
    print(
        f"target for {OURS}: QEMU / it >= {QEMU_TARGET:.0f}, it / echo <= {ECHO_TARGET}"
    )


if __name__ == "__main__":
    main()
