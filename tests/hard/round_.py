"""A round: each thing that a mount and its control socket can do, once.

The outcome of each step is "ok", an errno's name, or the daemon's reply. The test finds
a step that hangs, because it gets the outcomes of the steps before it.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from tests.hard import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PAGE: Final = 4096
_MIB: Final = 1 << 20


class Connection:
    """A peer that answers every event."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self._read = b""
        # Fds that commands have returned.
        self.fds: list[int] = []
        self._receive()
        self.do("qmp_capabilities")

    def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._read:
            data, ancillary, _, _ = self.socket.recvmsg(1 << 16, 64)
            if not data:
                raise ConnectionResetError(104, "the connection has ended")
            self._read += data
            for _, _, received in ancillary:
                self.fds += array.array("i", received)
        line, _, self._read = self._read.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def send(self, command: str, /, *fds: int, **arguments: object) -> None:
        message = {"execute": command, "arguments": arguments, "id": command}
        data = json.dumps(message).encode() + b"\n"
        if fds:
            socket.send_fds(self.socket, [data], fds)
        else:
            self.socket.sendall(data)

    def answer_one(self) -> dict[str, Any] | None:
        """The next reply to a command; None for an event, which is answered."""
        message = self._receive()
        data = message.get("data", {})
        if "sequence" in data:
            self.send(
                "invalidate-done", notifier=data["notifier"], sequence=data["sequence"]
            )
        return (
            None
            if message.get("id", "invalidate-done") == "invalidate-done"
            else message
        )

    def answer_until_end(self, pidfd: int) -> None:
        """Answer the events that come before the end of a process."""
        readers = [pidfd, self.socket.fileno()]
        # A message that was read with an earlier one is not in the socket any more.
        while b"\n" in self._read or readers[1] in select.select(readers, [], [])[0]:
            self.answer_one()

    def do(self, command: str, /, *fds: int, **arguments: object) -> Any:
        """What a command returns.

        Raises:
            OSError: the errno that it was refused with, as its text.
        """
        self.send(command, *fds, **arguments)
        while (answer := self.answer_one()) is None:
            pass
        if "error" in answer:
            name = str(answer["error"]["desc"]).partition(":")[0]
            raise Refused(name)
        return answer["return"]

    def close(self) -> None:
        self.socket.close()
        for fd in self.fds:
            os.close(fd)


class Refused(Exception):
    """A command was refused; its argument is the errno's name."""


def _steps(mount: str, control: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every step, by its name. A step may need the results of earlier ones."""
    d = f"{mount}/round"
    fds: dict[str, int] = {}
    peers: list[Connection] = []

    def opened(name: str, path: str, flags: int) -> None:
        fds[name] = os.open(path, flags, 0o600)

    def closed(name: str) -> None:
        os.close(fds.pop(name))

    def connected() -> None:
        peers.append(Connection(control))

    def command(what: str, /, *shown: str, **arguments: object) -> Callable[[], object]:
        return lambda: peers[0].do(what, *(fds[one] for one in shown), **arguments)

    # In the last round a failed call may have prevented the removal.
    yield "remove what is left", lambda: _remove(d)
    yield "mkdir", lambda: os.mkdir(d)
    yield "create", lambda: opened("a", f"{d}/a", os.O_CREAT | os.O_RDWR)
    yield "ftruncate", lambda: os.ftruncate(fds["a"], 16 * _MIB)
    yield "fallocate", lambda: plain.fallocate(fds["a"], 0, 0, _MIB)
    yield "fallocate 16M", lambda: plain.fallocate(fds["a"], 1, 0, 16 * _MIB)
    yield "punch", lambda: plain.fallocate(fds["a"], plain.PUNCH, 0, _PAGE)
    yield "punch 8M", lambda: plain.fallocate(fds["a"], plain.PUNCH, 0, 8 * _MIB)
    yield "fstat", lambda: os.fstat(fds["a"])
    yield "close", lambda: closed("a")
    yield "open", lambda: opened("a", f"{d}/a", os.O_RDWR)
    yield "long allocation", lambda: _long(f"{d}/long")
    yield "mknod", lambda: os.mknod(f"{d}/fifo", 0o010600)
    yield "symlink", lambda: os.symlink("a", f"{d}/s")
    yield "readlink", lambda: os.readlink(f"{d}/s")
    yield "link", lambda: os.link(f"{d}/a", f"{d}/b")
    yield "rename", lambda: os.rename(f"{d}/b", f"{d}/c")
    yield "chmod", lambda: os.chmod(f"{d}/c", 0o640)
    yield "chown", lambda: os.chown(f"{d}/c", 1, 1)
    yield "utime", lambda: os.utime(f"{d}/c", ns=(1, 2))
    yield "setxattr", lambda: os.setxattr(f"{d}/c", "trusted.x", b"1")
    yield "getxattr", lambda: os.getxattr(f"{d}/c", "trusted.x")
    yield "listxattr", lambda: os.listxattr(f"{d}/c")
    yield "removexattr", lambda: os.removexattr(f"{d}/c", "trusted.x")
    yield "listdir", lambda: os.listdir(d)
    yield "statvfs", lambda: os.statvfs(mount)
    yield "O_TMPFILE", lambda: opened("t", d, os.O_TMPFILE | os.O_RDWR)
    yield "status", lambda: os.getxattr(mount, "user.inaccfs.status")
    yield "connect", connected
    yield "query-version", command("query-version")
    yield "getfd", command("getfd", "a", fdname="a")
    yield "memfd-create", command("memfd-create", name="m", fdname="m", size=_MIB)
    yield "register-notifier", command("register-notifier", file="/round/a")
    yield "get-pfn", command("get-pfn", file="/round/a", offset=2100, count=64)
    yield "get-memory", command("get-memory", file="m")
    yield "query-map", command("query-map", file="/round/a")
    yield "trace-start", command("trace-start", kinds=[])
    # Not of file "a", whose notifier this process would have to answer.
    yield "traced", lambda: plain.fallocate(fds["t"], 1, 0, _PAGE)
    yield "punch with a notifier", lambda: _punched(peers[0], d, 2100, 8)
    yield "large punch with a notifier", lambda: _punched(peers[0], d, 0, 2048)
    yield "trace-stop", command("trace-stop")
    for query in ("files", "notifiers", "pins", "stats", "status", "semantics"):
        yield f"query-{query}", command(f"query-{query}")
    yield "closefd", command("closefd", fdname="m")
    yield "disconnect", lambda: peers.pop().close()
    yield "unlink", lambda: os.unlink(f"{d}/c")
    for one in peers:
        one.close()
    for fd in fds.values():
        with suppress(OSError):
            os.close(fd)
    yield "remove all", lambda: _remove(d)


def _long(path: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        plain.fallocate(fd, 0, 0, 160 * _MIB)
    finally:
        os.close(fd)
        os.unlink(path)


def _punched(peer: Connection, directory: str, first: int, pages: int) -> None:
    """Punch in a child process: this process is the peer that answers."""
    child = os.fork()
    if child == 0:
        result = plain.outcome(_punch_path, f"{directory}/a", first, pages)
        os._exit(0 if result == "ok" else 1)
    pidfd = os.pidfd_open(child)
    try:
        peer.answer_until_end(pidfd)
    finally:
        os.close(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise Refused("the punch failed")


def _punch_path(path: str, first: int, pages: int) -> None:
    fd = os.open(path, os.O_RDWR)
    plain.fallocate(fd, plain.PUNCH, first * _PAGE, pages * _PAGE)


def _remove(path: str) -> None:
    if os.path.lexists(path):
        for entry in list(os.scandir(path)):
            os.unlink(entry)
        os.rmdir(path)


def play(mount: str, control: str) -> Iterator[tuple[str, str]]:
    """The name of each step, then its outcome."""
    for name, step in _steps(mount, control):
        yield name, ""
        try:
            step()
        except OSError as exc:
            yield name, plain.name_of(exc)
        except Refused as exc:
            yield name, str(exc)
        except (KeyError, IndexError):
            yield name, "nothing to do it with"
        else:
            yield name, "ok"


def serve(mount: str, control: str) -> None:
    """Play a round for each line of standard input; then an empty line."""
    for _ in sys.stdin:
        for name, result in play(mount, control):
            sys.stdout.write(f"{name}\t{result}\n")
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
