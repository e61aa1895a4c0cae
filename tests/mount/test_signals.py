"""Commands with children and mounts of their own: nothing outlives them at a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from tests.mount import support
from tests.mount.support import ENVIRONMENT, PATIENCE, inaccfs_command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fuse

# Say that they are there, and wait.
SCRIPT: Final = """
import os, sys, time
open(os.environ["INACCFS_TEST_READY"], "x").close()
time.sleep(3600)
"""
EXPERIMENT: Final = """
class Endless:
    question = "Does it end?"
    def run(self, lab):
        with lab.bench("v8"):
            exec(open("script.py").read())
"""

COMMANDS: Final = {
    "kvm run script.py": True,
    "compare --semantics v8 --semantics v10 script.py": True,
    "experiment experiment.py:Endless": True,
    "kvm stress --seconds 3600": False,
    "kvm probe": False,
}
"""Whether the command says that it is there; else it is when it has a mount."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("words", COMMANDS)
def test_what_it_has_started_ends_before_it(
    scratch: Path, words: str, number: signal.Signals
) -> None:
    (scratch / "script.py").write_text(SCRIPT)
    (scratch / "experiment.py").write_text(EXPERIMENT)
    ready, temporary = scratch / "ready", scratch / "tmp"
    temporary.mkdir()
    with (
        # Not pipes, whose end the daemon would put off.
        (scratch / "output").open("wb") as output,
        subprocess.Popen(
            inaccfs_command(*words.split()),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=scratch,
            env={
                **ENVIRONMENT,
                "INACCFS_TEST_READY": str(ready),
                "TMPDIR": str(temporary),
            },
        ) as command,
        ExitStack() as stack,
    ):
        support.ask_until(
            ready.exists
            if COMMANDS[words]
            else lambda: any(map(support.is_mounted, temporary.glob("*/mnt")))
        )
        started = {pid: os.pidfd_open(pid) for pid in support.children_of(command.pid)}
        for fd in started.values():
            stack.callback(os.close, fd)
        # The daemon and its helper, at least.
        assert len(started) >= 2
        command.send_signal(number)
        assert command.wait(PATIENCE) == -number
        left = [pid for pid, fd in started.items() if not support.wait_readable(fd, 0)]
        assert left == []
        assert os.listdir(temporary) == []
    said = (scratch / "output").read_text()
    assert not said.startswith("inaccfs: ")
    assert "Traceback" not in said


def test_ctrl_c_ends_a_comparison_and_its_children(scratch: Path) -> None:
    """Which does not get it: it is not in the terminal, as in a script."""
    (scratch / "script.py").write_text(SCRIPT)
    ready = scratch / "ready"
    with subprocess.Popen(
        inaccfs_command("compare", "--semantics=v8", "--semantics=v9", "script.py"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=scratch,
        env={**ENVIRONMENT, "INACCFS_TEST_READY": str(ready)},
    ) as command:
        support.ask_until(ready.exists)
        started = [os.pidfd_open(pid) for pid in support.children_of(command.pid)]
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=PATIENCE)
        assert all(support.wait_readable(fd, 0) for fd in started)
        for fd in started:
            os.close(fd)
    assert (command.returncode, out, err) == (130, "", "")


def test_ctrl_c_in_a_terminal_signals_the_run_of_a_comparison_once(
    scratch: Path,
) -> None:
    """The terminal sends it to the process group; a second would cut its end short."""
    note = """
        import os, signal
        flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK
        # Python writes the number of each signal to it.
        signal.set_wakeup_fd(os.open("numbers", flags))
    """
    (scratch / "script.py").write_text(textwrap.dedent(note) + SCRIPT)
    ready = scratch / "ready"
    with subprocess.Popen(
        inaccfs_command("compare", "--semantics=v8", "--semantics=v9", "script.py"),
        stdin=subprocess.DEVNULL,
        cwd=scratch,
        env={**ENVIRONMENT, "INACCFS_TEST_READY": str(ready)},
        start_new_session=True,
    ) as command:
        support.ask_until(ready.exists)
        os.killpg(command.pid, signal.SIGINT)
        assert command.wait(PATIENCE) == 130
    assert list((scratch / "numbers").read_bytes()) == [signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_mount_that_is_interrupted_early_says_nothing(
    point: Path, scratch: Path, number: signal.Signals
) -> None:
    """Not even its daemon, whose interpreter has just been started."""
    # It runs in the daemon before our own code, and waits until that is ended.
    (scratch / "sitecustomize.py").write_text(
        "import select, sys\n"
        "if '--foreground' in sys.orig_argv:\n"
        f"    open({str(scratch / 'ready')!r}, 'x').close()\n"
        "    select.poll().poll(60000)\n"
    )
    path = f"{scratch}:{ENVIRONMENT['PYTHONPATH']}"
    with (
        (scratch / "output").open("wb") as output,
        subprocess.Popen(
            inaccfs_command("mount", "--control", scratch / "c", point),
            stdout=output,
            stderr=output,
            env={**ENVIRONMENT, "PYTHONPATH": path},
        ) as command,
    ):
        support.ask_until((scratch / "ready").exists)
        (daemon,) = support.children_of(command.pid)
        fd = os.pidfd_open(daemon)
        command.send_signal(number)
        command.wait(PATIENCE)
        assert support.wait_readable(fd, 0)
        os.close(fd)
    assert (scratch / "output").read_text() == ""
    assert not support.is_mounted(point)
