"""A user's class as the rules of a mount: its file is code, which runs once."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.mount import support
from tests.mount.support import ENVIRONMENT, PATIENCE, complaint, inaccfs_command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fuse

_HEAD = "from inaccfs.semantics import V8\nclass Mine(V8): pass\n"


def written(directory: Path, text: str) -> str:
    file = directory / "mine.py"
    file.write_text(_HEAD + text)
    return f"{file}:Mine"


@pytest.mark.parametrize("way", ["background", "mounted"])
def test_the_file_of_a_class_is_run_once(point: Path, scratch: Path, way: str) -> None:
    runs = scratch / "runs"
    wanted = written(scratch, f"print(1, file=open({str(runs)!r}, 'a'))\n")
    if way == "mounted":
        with support.mounted(point, semantics=wanted):
            pass
    else:
        with support.background(point, scratch, "--semantics", wanted):
            support.cli("umount", point)
    assert runs.read_text() == "1\n"


@pytest.mark.parametrize("way", [(), ("--foreground",)])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / 0", "line 3: ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", "line 3: KeyboardInterrupt"),
        ("Mine.order = 'never'", "order is 'never': it can be"),
        ("Mine.told = 'clipped'", "rule 'told' is called 'reported' now"),
    ],
)
def test_an_error_of_a_class_is_reported_in_a_line(
    point: Path, scratch: Path, way: tuple[str, ...], text: str, reason: str
) -> None:
    """The daemon reports it, with the same status as if the command did."""
    words = ("--control", scratch / "control", "--log", scratch / "log")
    wanted = written(scratch, text)
    message = complaint("mount", *way, *words, "--semantics", wanted, point, status=2)
    assert message.startswith("inaccfs: semantics ")
    assert reason in message
    assert not support.is_mounted(point)
    assert sorted(path.name for path in scratch.iterdir()) == ["mine.py", "mnt"]


@pytest.mark.parametrize("status", [0, 3])
def test_a_file_that_ends_the_process_makes_no_mount(
    point: Path, scratch: Path, status: int
) -> None:
    wanted = written(scratch, f"import os; os._exit({status})")
    words = ("mount", "--control", scratch / "control", "--log", scratch / "log")
    ended = support.cli(*words, "--semantics", wanted, point, status=status or 1)
    # A daemon that says nothing has no message, but it is never a success.
    wanted = "" if status else "inaccfs: the daemon ended before there was a mount\n"
    assert ended.stderr == wanted
    assert not support.is_mounted(point)


def test_an_interrupt_shows_the_line_of_a_file_that_does_not_end(
    point: Path, scratch: Path
) -> None:
    fifo = scratch / "fifo"
    support.run("mkfifo", fifo)
    # It signals that it runs, and waits.
    text = f"open({str(fifo)!r}, 'w').close(); import time; time.sleep(1000)"
    with subprocess.Popen(
        inaccfs_command(
            "mount",
            "--control",
            scratch / "control",
            "--log",
            scratch / "log",
            "--semantics",
            written(scratch, text),
            point,
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        fifo.read_text()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert err == f"inaccfs: semantics {scratch}/mine.py: line 3: KeyboardInterrupt\n"
    assert not support.is_mounted(point)


def test_the_words_of_the_user_reach_the_daemon(point: Path, scratch: Path) -> None:
    """They may be written in any form and order."""
    words = ("-o", "fsname=a b", "--size=1m", "--no-guest-access", "-vv", "--")
    with support.background(point, scratch, *words):
        shown = support.run("findmnt", "-n", "-o", "SOURCE,SIZE", point).stdout
        assert shown.split() == ["a", "b", "1M"] or "a\\x20b" in shown
        support.cli("umount", point)
    assert "rules: v8" in (scratch / "background.log").read_text()


def test_options_of_a_daemon_are_refused_without_foreground(point: Path) -> None:
    message = complaint("mount", "--ready-fd", "1", point, status=2)
    assert message == "inaccfs: --ready-fd is for a daemon: give --foreground, too"
