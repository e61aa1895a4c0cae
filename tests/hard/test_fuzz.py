"""Malformed input: requests of the kernel, messages of peers, options and rules.

The inputs come from `random` with a fixed seed and not from Hypothesis, which the unit
tests use: there is nothing to shrink (a failure names its round, and each round is one
small input), and a run of ten minutes begins with the inputs of a run of one minute.
"""

from __future__ import annotations

import json
import os
import random
import socket
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from inaccfs.cli import main
from inaccfs.control.messages import COMMANDS
from inaccfs.errors import InaccfsError
from inaccfs.fuse.wire import Op
from inaccfs.semantics import VERSIONS, load, rules
from tests.hard.budget import times
from tests.mount import support
from tests.mount.peers import Peer, peer
from tests.mount.support import PAGE, new_file
from tests.unit import fakes
from tests.unit.conftest import small_tmpfs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.hard.census import Ground

SEED: Final = 20221202

NUMBERS: Final = (0, 1, 7, 4095, 4096, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 63)


def some_bytes(dice: random.Random, most: int) -> bytes:
    return dice.randbytes(dice.randrange(most))


def mutated(dice: random.Random, data: bytes) -> bytes:
    """*data* with a few bytes changed, cut off, inserted or doubled."""
    found = bytearray(data)
    for _ in range(dice.randrange(1, 5)):
        at = dice.randrange(len(found) + 1)
        what = dice.randrange(4)
        if what == 0:
            found[at:] = b""
        elif what == 1:
            found[at:at] = some_bytes(dice, 9)
        elif what == 2:
            found[at : at + 1] = dice.randbytes(1)
        else:
            found[at:at] = found[: dice.randrange(64)]
    return bytes(found)


# --- requests of the kernel -------------------------------------------------------

_UNANSWERED: Final = (Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT)


def _request(dice: random.Random) -> tuple[int, int, bytes]:
    """An opcode, a node, and the data after the header."""
    # A second INIT is a kernel bug that no channel can survive.
    op: int = dice.choice([one for one in Op if one != Op.INIT])
    if dice.random() < 0.1:
        op = dice.choice([0, 19, 47, 53, 99, 4095, 1 << 31])
    # The kernel never sends a slash in a name, and with one a name could leave the
    # tree.
    name = some_bytes(dice, 300).replace(b"/", b"_") + dice.choice([b"", b"\0"])

    def u() -> int:
        return dice.choice(NUMBERS)

    def u32() -> int:
        return u() & 0xFFFFFFFF

    body = dice.choice(
        [
            name,
            dice.choice([b".\0", b"..\0", b"f\0", b"d\0", b"\0", b""]),
            fakes.FALLOCATE_IN.pack(u(), u(), u(), u32(), u32()),
            fakes.OPEN_IN.pack(u32(), u32()),
            fakes.CREATE_IN.pack(u32(), u32(), 0, 0) + name,
            fakes.RENAME2_IN.pack(u(), u32(), 0) + b"f\0" + name,
            fakes.BATCH_FORGET_IN.pack(dice.randrange(4), 0)
            + fakes.FORGET_ONE.pack(dice.choice([2, 3, 999]), 1),
            fakes.RELEASE_IN.pack(u(), u32(), 0, 0),
            fakes.LSEEK_IN.pack(u(), u(), u32(), 0),
            fakes.GETXATTR_IN.pack(u32(), 0) + name,
            fakes.read_in(u32()),
        ]
    )
    if dice.random() < 0.3:
        body = mutated(dice, body)
    return op, dice.randrange(4), body.replace(b"/", b"_")


async def _play_requests(dice: random.Random, count: int) -> None:
    backing = small_tmpfs()
    os.mkdir("d", dir_fd=backing.root)
    try:
        async with fakes.serving(backing) as world:
            kernel = world.kernel
            file = (await kernel.create(b"f")).entry().nodeid
            directory = (await kernel.lookup(b"d")).entry().nodeid
            for number in range(count):
                op, target, body = _request(dice)
                nodeid = (1, file, directory, 999)[target]
                unique = await kernel.send(op, nodeid, body)
                after = await kernel.send(Op.STATFS)
                wanted = {after} if op in _UNANSWERED else {unique, after}
                found = {(await kernel.receive()).unique for _ in wanted}
                assert found == wanted, (number, op, nodeid, body)
                assert kernel.is_silent(), (number, op, nodeid, body)
    finally:
        backing.close()


@pytest.mark.parametrize("batch", range(times(10)))
def test_requests_of_the_kernel(batch: int) -> None:
    """Each request gets exactly its replies, and the channel goes on."""
    umask = os.umask(0)
    try:
        trio.run(_play_requests, random.Random(f"{SEED} {batch}"), 200)
    finally:
        os.umask(umask)


# --- messages of peers ------------------------------------------------------------


def _value(dice: random.Random, depth: int = 0) -> Any:
    """Any JSON value, more often one that a command accepts."""
    simple: list[Any] = [
        *("/f", "f", "mine", "", "/", "/nowhere", "\udcff", "x" * 300),
        *(0, 1, 3, 63, 64, -1, 1 << 51, 1 << 64, 10**400, 0.5, True, None),
    ]
    if depth > 2 or dice.random() < 0.8:
        return dice.choice(simple)
    if dice.random() < 0.5:
        return [_value(dice, depth + 1) for _ in range(dice.randrange(4))]
    return {str(_value(dice, 3)): _value(dice, depth + 1) for _ in range(3)}


def _message(dice: random.Random) -> bytes:
    name = dice.choice([name for name in COMMANDS if name != "quit"])
    arguments: Any = {}
    for field in COMMANDS[name].__struct_encode_fields__:
        if dice.random() < 0.9:
            arguments[field] = _value(dice)
    message: Any = {"execute": name, "arguments": arguments, "id": _value(dice)}
    if dice.random() < 0.1:
        message[str(_value(dice, 3))] = _value(dice)
    if dice.random() < 0.05:
        message = _value(dice)
    indent = dice.choice([None, None, None, 1])
    data = json.dumps(message, indent=indent).encode()
    return mutated(dice, data) if dice.random() < 0.3 else data


def _fuzz_peer(shim: Peer, dice: random.Random, fds: Sequence[int], count: int) -> None:
    """Send *count* messages, whole or in parts, with or without fds, and read."""
    shim.socket.setblocking(False)
    for _ in range(count):
        data = _message(dice) + dice.choice([b"\n", b"\n", b"\r\n", b"", b" ", b"\n\n"])
        shown = dice.choices(fds, k=dice.choice([0, 0, 0, 1, 2]))
        while data:
            part = dice.choice([len(data), dice.randrange(1, len(data) + 1)])
            # A peer that is too slow, or was disconnected, stops.
            with suppress(BlockingIOError):
                socket.send_fds(shim.socket, [data[:part]], shown)
            data, shown = data[part:], []
        with suppress(BlockingIOError):
            _, received, _, _ = socket.recv_fds(shim.socket, 1 << 16, 16)
            for fd in received:
                os.close(fd)


@pytest.mark.fuse
@pytest.mark.parametrize("version", ["v8", "v7", "guest_memfd", "bind"])
def test_messages_of_peers(ground: Ground, point: Path, version: str) -> None:
    """Other peers are served, and nothing is logged as a bug."""
    dice = random.Random(f"{SEED} {version}")
    with support.mounted(point, semantics=version, ack_timeout=0.2) as mount:
        ground.remember(point)
        new_file(point / "f", 64 * PAGE)
        with (
            support.opened(point / "f") as ours,
            support.opened("/dev/null") as other,
            peer(mount.control) as watcher,
        ):
            for number in range(times(40)):
                with peer(mount.control) as shim, suppress(ConnectionError):
                    _fuzz_peer(shim, dice, (ours, other), 25)
                assert "qemu" in watcher.do("query-version"), number
            support.ask_until(lambda: watcher.do("query-stats")["peers"] == 1)
            found = watcher.do("query-stats")
        log = mount.log.read_text()
        assert "Traceback" not in log, log
        # A peer that does not answer is evicted, and that is logged as an ERROR.
        mount.log.write_text("")
    assert (found["references"], found["notifiers"]) == (0, 0)


@pytest.mark.fuse
def test_a_stream_without_form(ground: Ground, point: Path) -> None:
    """Bytes that are not JSON, and objects in pieces of any size."""
    dice = random.Random(SEED)
    with support.mounted(point) as mount, peer(mount.control) as watcher:
        for _ in range(times(60)):
            with peer(mount.control) as shim, suppress(ConnectionError):
                for _ in range(20):
                    shim.socket.sendall(
                        dice.choice(
                            [some_bytes(dice, 200), b"[" * dice.randrange(9000)]
                        )
                    )
        answers = 0
        with peer(mount.control) as shim:
            text = b"".join(
                json.dumps({"execute": "query-version", "id": at}).encode()
                + dice.choice([b"", b" ", b"\n", b"\r\n", b"\n \n"])
                for at in range(50)
            )
            while text:
                size = dice.choice([1, 2, 7, 40, 1000])
                shim.socket.sendall(text[:size])
                text = text[size:]
            for at in range(50):
                answers += shim.answer()["id"] == at
        assert answers == 50
        assert "qemu" in watcher.do("query-version")


# --- options and rules ------------------------------------------------------------

_WORDS: Final = (
    *("--size", "--huge", "--mode", "--uid", "--gid", "--ack-timeout", "--allow-uid"),
    *("--limit", "--pfn-source", "--simulated-memory", "--simulated-order"),
    *("--simulated-fragmentation", "--semantics", "-o"),
)
_VALUES: Final = (
    *("", "0", "1", "-1", "1m", "1q", "50%", "101%", "nan", "inf", "1e9", "0x10"),
    *("9" * 5000, "٣", "peers=9", "peers=", "=9", "peers=" + "9" * 5000, "always"),
    *("size=1m", "limit=peers=0", "nonsense", "a=b=c", ",,,", "allow_other", "v8"),
    *("fsname=a b", "max_read=x", "\n", "a\tb", "é", "\udcff", "ro,rw", "simulated"),
    *("guest_memfd", "x.py:Y", ".py:", ":"),
)


def test_words_of_users(
    tmp_path: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each command line is accepted, or refused in one line with status 1 or 2."""
    # Accepted options get as far as the start of a daemon.
    taken: list[object] = []
    monkeypatch.setattr("inaccfs.launch.start_daemon", _not_started(taken))
    mountpoint = tmp_path / "mountpoint"
    mountpoint.mkdir()
    dice = random.Random(SEED)
    refused = 0
    for number in range(times(1500)):
        words = ["mount", "--log", str(tmp_path / "log")]
        words += ["--control", str(scratch / "control")]
        for _ in range(dice.randrange(1, 4)):
            value = dice.choice(_VALUES)
            if dice.random() < 0.4:
                value = mutated(dice, value.encode(errors="replace")).decode("latin-1")
            words.append(f"{dice.choice(_WORDS)}={value}".replace("-o=", "-o"))
        words.append(str(mountpoint))
        try:
            status = main(words)
        except SystemExit as exc:
            status = int(exc.code or 0)
        message = capsys.readouterr().err
        assert status in (1, 2), (number, words, message)
        assert "Traceback" not in message, (number, words, message)
        if message.startswith("usage: "):
            # This is argparse's message: usage and a line.
            assert status == 2, (number, words, message)
            continue
        refused += status == 2
        assert message.startswith("inaccfs: "), (number, words, message)
        assert message.count("\n") == 1, (number, words, message)
        assert message[:-1].isprintable(), (number, words, message)
    # A wrong command line has status 2; a correct one does not start here, status 1.
    assert refused > 1000
    assert taken


def _not_started(taken: list[object]) -> Callable[..., object]:
    def start_daemon(*arguments: object, **_: object) -> object:
        taken.append(arguments)
        raise InaccfsError("it would start now")

    return start_daemon


_LINES: Final = (
    *(
        "size = 'free'",
        "size = 7",
        "order = 'before'",
        "order = None",
        "unit = 'bytes'",
    ),
    *("aligned = 'nothing'", "aligned = property(lambda self: 1 / 0)", "mmap = []"),
    *("notifies = 'punches'", "scope = 'range'", "events = 3", "name = '\\x1b[31m'"),
    *("magic = -1", "magic = 1 << 70", "exclusive = 'yes'", "references = 'none'"),
    *("def check_size(self, old, new, page): return 1 / 0",),
    *("def check_size(self, old, new, page): return 38", "def check_size(self): pass"),
    *("def check_fallocate(self, *a): raise OSError(38, 'x')",),
    *("async def check_fallocate(self, *a): return None",),
    *("def plan(self, *, punches): return 'nothing'", "def plan(self): yield 1"),
    *("__slots__ = ('size',)", "def __init__(self): raise SystemExit(3)"),
    *("def __getattribute__(self, name): raise KeyboardInterrupt",),
    *("def __init_subclass__(cls): 1 / 0", "__class__ = int", "del size"),
)
_METACLASS: Final = """\
class Meta(type):
    def __getattribute__(cls, name):
        raise {error}
class Mine({base}, metaclass=Meta): pass
"""


def test_rules_of_users(tmp_path: Path) -> None:
    """Each file of rules is loaded, or refused in one line."""
    dice = random.Random(SEED)
    path = tmp_path / "mine.py"
    imports = "".join(
        f"from inaccfs.semantics{where} import *\n" for where in ("", ".rules")
    )
    bases = [cls.__name__ for cls in VERSIONS] + [
        "object",
        "Semantics",
        "int",
        "V8, V8",
    ]
    refused = 0
    for number in range(times(600)):
        lines = dice.choices(_LINES, k=dice.randrange(1, 4))
        body = textwrap.indent("\n".join(lines), "    ")
        text = f"class Mine({dice.choice(bases)}):\n{body}\n"
        if dice.random() < 0.1:
            error = dice.choice(
                ["RuntimeError('x')", "AttributeError(name)", "OSError"]
            )
            text = _METACLASS.format(error=error, base=dice.choice(bases[:3]))
        if dice.random() < 0.2:
            text = mutated(dice, text.encode()).decode("latin-1")
        path.write_text(imports + text, encoding="utf-8")
        try:
            made = load.load(f"{path}:Mine")
        except InaccfsError as exc:
            refused += 1
            message = str(exc)
            assert message, (number, text)
            assert message.isprintable(), (number, text, message)
        else:
            assert isinstance(made, rules.Semantics), (number, text)
    assert refused > 100
