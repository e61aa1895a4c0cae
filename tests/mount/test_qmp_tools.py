"""Tools that speak QMP: `inaccfs qmp`, a stock qmp-shell, and the package qemu.qmp."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.mount import support
from tests.mount.support import (
    ENVIRONMENT,
    MIB,
    PAGE,
    PATIENCE,
    cli,
    complaint,
    inaccfs_command,
    new_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import inaccfs

pytestmark = pytest.mark.fuse

QMP_SHELL = Path(sys.executable).with_name("qmp-shell")


@pytest.fixture(autouse=True)
def guest(mount: inaccfs.Mount) -> Path:
    """A file of the mount, of 256 pages."""
    return new_file(mount.path / "guest0", MIB)


def typed(mount: inaccfs.Mount, text: str, *options: str) -> Any:
    """Give `inaccfs qmp` lines to execute."""
    return subprocess.run(
        inaccfs_command("qmp", *options, mount.path),
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=ENVIRONMENT,
    )


# --- one command --------------------------------------------------------------------


def test_one_command_prints_what_it_returns(mount: inaccfs.Mount) -> None:
    ran = cli("qmp", mount.path, "get-pfn", "file=/guest0", "offset=0x10", "count=8")
    extents = json.loads(ran.stdout)["extents"]
    assert (extents[0]["offset"], sum(one["count"] for one in extents)) == (16, 8)
    assert len(ran.stdout.splitlines()) > 3
    assert ran.stderr == ""


def test_a_return_in_one_line_for_programs(mount: inaccfs.Mount) -> None:
    for words in (
        ("--compact", mount.control, "query-version"),
        (mount.control, "--compact", "query-version"),
        (mount.control, "query-version", "--compact"),
    ):
        ran = cli("qmp", *words)
        [line] = ran.stdout.splitlines()
        assert json.loads(line)["package"] == "inaccfs"


def test_a_file_by_its_fd(mount: inaccfs.Mount, guest: Path) -> None:
    ran = cli("qmp", mount.path, "--fd", f"g={guest}", "query-file", "file=g")
    assert json.loads(ran.stdout)["name"] == "/guest0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["get-pfn", "file=/guest0", "offset=256"], "get-pfn: EINVAL: offset 256"),
        (["query-file", "file=/none"], "query-file: ENOENT: /none"),
        (["memory-failure", "file=/guest0", "offset=0"], "memory-failure: EOPNOTSUPP"),
        (["get-pfns", "file=/guest0"], "did you mean get-pfn?"),
        (["qmp_capabilities"], "no command"),
        (["get-pfn", "file=/guest0", "ofset=1"], "did you mean offset? (get-pfn file"),
        (["get-pfn", "file=/guest0"], "needs file and offset (get-pfn file=FILE"),
        (
            ["get-pfn", "file=/guest0", "offset=x"],
            "get-pfn: offset: 'x' is not a whole",
        ),
        (["get-pfn", "file=/guest0", "offset=-1"], "get-pfn: offset: Expected `int`"),
        (
            ["set-memory-attributes", "file=/f", "offset=0", "count=1", "private=no"],
            "set-memory-attributes: private: 'no' is not true or false",
        ),
        (["quit", "now"], "'now' is not NAME=VALUE"),
        (["--what", "quit"], "unknown option '--what'"),
        (["--fd", "/guest0", "quit"], "not NAME=PATH"),
        (["--fd", "g=/none", "quit"], "/none: No such file"),
        (["--fd", "g=/dev/null", "quit"], "/dev/null: EINVAL: the fd is no file"),
        (["getfd", "fdname=x"], "needs fdname and fd"),
        (["getfd", "fdname=x", "fd=/dev/null"], "getfd: EINVAL"),
    ],
)
def test_an_error_is_reported_in_one_line(
    mount: inaccfs.Mount, words: list[str], said: str
) -> None:
    # If the daemon, or the kernel, refuses a call, the command line was right.
    status = 1 if re.match(r"/|[a-z-]+: E[A-Z]{3}", said) else 2
    assert said in complaint("qmp", mount.path, *words, status=status)


def test_a_path_that_is_no_mount_is_reported_in_one_line(scratch: Path) -> None:
    assert "neither" in complaint("qmp", scratch, "query-version")


def test_help_lists_all_commands() -> None:
    output = cli("qmp", "-h").stdout
    for name in ("get-pfn file=FILE offset=N [count=N]", "quit", "--fd NAME=PATH"):
        assert name in output
    assert "qmp_capabilities" not in output


def test_to_quit_is_no_error() -> None:
    with support.mounted() as mount:
        assert cli("qmp", mount.path, "quit").stdout == "{}\n"
        assert mount.process.wait(PATIENCE) == 0


# --- lines of commands --------------------------------------------------------------


def test_commands_one_a_line(mount: inaccfs.Mount, guest: Path) -> None:
    ran = typed(
        mount,
        f"""
        # Names live as long as this does.
        getfd fdname=g fd={guest}
        get-pfn file=g offset=3
        query-file file=g
        memfd-create name="a guest" fdname=m size=8192
        query-file file=m""",
        "--compact",
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    named, got, file, made, memfd = map(json.loads, ran.stdout.splitlines())
    assert named == {}
    assert got["order"] == 0
    assert file["referenced"] == 1
    assert made["fd"].startswith("/proc/")
    assert (memfd["name"], memfd["size"]) == ("memfd:a guest", 8192)


def test_an_error_in_a_line_stops_no_other(mount: inaccfs.Mount) -> None:
    ran = typed(
        mount, "foo\nget-pfn file=/guest0 offset=999\n'\nquery-version\n", "--compact"
    )
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["package"] == "inaccfs"
    assert [line.split(":")[0] for line in ran.stderr.splitlines()] == ["inaccfs"] * 3
    assert "EINVAL" in ran.stderr


@contextmanager
def watching(mount: inaccfs.Mount, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`inaccfs qmp` with pipes for its input and output."""
    with subprocess.Popen(
        inaccfs_command("qmp", mount.path, "--compact", *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=ENVIRONMENT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")


def test_events_are_printed_and_answered_by_hand(
    mount: inaccfs.Mount, guest: Path
) -> None:
    with watching(mount) as process:
        say(process, "register-notifier file=/guest0")
        number = said(process)["notifier"]
        with subprocess.Popen(
            ["fallocate", "-p", "-o", f"{PAGE}", "-l", f"{2 * PAGE}", guest]
        ) as punch:
            output = said(process)
            assert output["event"] == "INVALIDATE"
            data = output["data"]
            assert (data["notifier"], data["start"], data["end"]) == (number, 1, 3)
            # A command that waits for the punch does not delay the answer.
            say(process, "register-notifier file=/guest0")
            assert punch.poll() is None
            answer = f"notifier={number} sequence={data['sequence']}"
            say(process, f"invalidate-done {answer}")
            assert said(process) == {}
            assert punch.wait(PATIENCE) == 0
        assert said(process) == {"notifier": number + 1}
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


def test_watch_answers_until_the_daemon_ends() -> None:
    with support.mounted() as mount:
        guest = new_file(mount.path / "guest0", MIB)
        with watching(mount, "--watch", "register-notifier", "file=/guest0") as process:
            assert said(process) == {"notifier": 1}
            support.run("fallocate", "-p", "-o", 0, "-l", PAGE, guest)
            assert said(process)["event"] == "INVALIDATE"
            cli("qmp", mount.path, "quit")
            assert said(process) == {"event": "SHUTDOWN", "data": {"reason": "quit"}}
            assert process.wait(PATIENCE) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("semantics", "watched", "events"),
    [
        ("v7", "register-notifier", ["POPULATE", "INVALIDATE"]),
        ("v8", "register-notifier", ["INVALIDATE", "INVALIDATE"]),
        ("v10", "register-notifier", ["INVALIDATE_START", "INVALIDATE_END"]),
        ("guest_memfd", "bind", ["INVALIDATE_START", "INVALIDATE_END"]),
    ],
)
def test_watch_answers_every_event_that_wants_an_answer(
    semantics: str, watched: str, events: list[str]
) -> None:
    """Otherwise a call would wait for the ack timeout, and evict the watcher.

    The log, which is checked, would say so.
    """
    words = [watched, "file=/guest0"] + ["start=0", "end=4"] * (watched == "bind")
    with support.mounted(semantics=semantics) as mount:
        guest = new_file(mount.path / "guest0", MIB)
        with watching(mount, "--watch", *words) as process:
            assert said(process)["notifier"] == 1
            support.run("fallocate", "-n", "-o", 0, "-l", PAGE, guest)
            support.run("fallocate", "-p", "-o", 0, "-l", PAGE, guest)
            assert [said(process)["event"] for _ in events] == events
            notifiers = json.loads(cli("qmp", mount.path, "query-notifiers").stdout)
            assert [found["waiting"] for found in notifiers] == [None]
            cli("qmp", mount.path, "quit")
            assert process.wait(PATIENCE) == 0


def test_ctrl_c_ends_watching(mount: inaccfs.Mount) -> None:
    with watching(mount, "--watch", "register-notifier", "file=/guest0") as process:
        said(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_terminal_gets_a_prompt(mount: inaccfs.Mount) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        inaccfs_command("qmp", mount.path, "--compact"),
        stdin=theirs,
        stdout=theirs,
        env=ENVIRONMENT,
    ) as process:
        os.close(theirs)
        output = until(ours, b"inaccfs> ")
        os.write(ours, b"query-version\n")
        output = until(ours, b"inaccfs> ")
        assert b'"package":"inaccfs"' in output
        # Ctrl-D, as a terminal sends it.
        os.write(ours, b"\x04")
        assert process.wait(PATIENCE) == 0
    os.close(ours)


def until(fd: int, end: bytes) -> bytes:
    """Read until the text ends with *end*."""
    output = b""
    while not output.endswith(end):
        assert support.wait_readable(fd), output
        output += os.read(fd, 4096)
    return output


# --- a stock qmp-shell --------------------------------------------------------------


def test_a_stock_qmp_shell(mount: inaccfs.Mount, scratch: Path) -> None:
    ran = subprocess.run(
        [QMP_SHELL, str(mount.control)],
        input="query-status\n"
        "get-pfn file=/guest0 offset=3\n"
        "get-pfn file=/guest0 offset=256\n"
        "register-notifier file=/guest0\n"
        "nonsense\n"
        "query-version\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env={**ENVIRONMENT, "HOME": str(scratch)},
    )
    assert "Connected to QEMU 0.2.0" in ran.stdout
    assert f'"mountpoint": "{mount.path}"' in ran.stdout
    assert '"order": 0' in ran.stdout
    assert "EINVAL: offset 256 lies past the end" in ran.stdout
    assert re.search(r'"notifier": \d+', ran.stdout)
    assert "CommandNotFound" in ran.stdout
    assert '"package": "inaccfs"' in ran.stdout


# --- the package qemu.qmp -----------------------------------------------------------


def test_the_package_qemu_qmp(mount: inaccfs.Mount, guest: Path) -> None:
    async def use() -> None:
        client = QMPClient("test")
        await client.connect(str(mount.control))
        try:
            await converse(client)
        finally:
            await client.disconnect()

    async def converse(client: QMPClient) -> None:
        commands: Any = await client.execute("query-commands")
        assert {"name": "get-pfn"} in commands
        status: Any = await client.execute("query-status")
        assert status["pid"] == mount.pid
        arguments: dict[str, object] = {"file": "/guest0", "offset": 3}
        got: Any = await client.execute("get-pfn", arguments)
        assert got["order"] == 0
        with pytest.raises(ExecuteError, match="EINVAL"):
            await client.execute("get-pfn", {**arguments, "offset": 256})
        with pytest.raises(ExecuteError) as caught:
            await client.execute("nonsense")
        assert caught.value.error_class == "CommandNotFound"
        with client.listener("INVALIDATE") as events:
            made: Any = await client.execute("register-notifier", {"file": "/guest0"})
            punch = await asyncio.create_subprocess_exec(
                "fallocate", "-p", "-o", "0", "-l", str(PAGE), str(guest)
            )
            event = await events.get()
            data: Any = event["data"]
            assert (data["notifier"], data["start"], data["end"]) == (
                made["notifier"],
                0,
                1,
            )
            timestamp: Any = event["timestamp"]
            assert set(timestamp) == {"seconds", "microseconds"}
            assert punch.returncode is None
            answer = {"notifier": data["notifier"], "sequence": data["sequence"]}
            await client.execute("invalidate-done", answer)
            assert await punch.wait() == 0

    asyncio.run(asyncio.wait_for(use(), PATIENCE))


def test_qemu_qmp_sees_the_daemon_end() -> None:
    async def use(control: str) -> object:
        client = QMPClient("test")
        await client.connect(control)
        with client.listener("SHUTDOWN") as events:
            await client.execute("quit")
            event = await events.get()
        # The daemon may have hung up first.
        with suppress(EOFError):
            await client.disconnect()
        return event["data"]

    with support.mounted() as mount:
        output = asyncio.run(asyncio.wait_for(use(str(mount.control)), PATIENCE))
        assert output == {"reason": "quit"}
        assert mount.process.wait(PATIENCE) == 0
