"""Signals that end a command, and those that come during an import."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import inaccfs
from inaccfs.deferring import Deferred

TOP: Final = str(Path(inaccfs.__file__).resolve().parent.parent)

# Modules of the package that are imported by each other; `inner` gets the signal.
MODULES: Final = {
    "outer.py": "import sys\nimport inaccfs.inner\nsys.stdout.write('outer ')\n",
    "inner.py": (
        "import signal, sys\n"
        "signal.raise_signal(sys.number)\n"
        "sys.stdout.write('inner ')\n"
    ),
}

COMMAND: Final = """
import signal, sys
import inaccfs
from inaccfs.cli import interrupts
inaccfs.__path__.append({path!r})
sys.number = signal.{name}
sys.stdout.reconfigure(write_through=True)
interrupts.take()
try:
    import inaccfs.outer
except KeyboardInterrupt:
    sys.stdout.write("interrupted ")
{then}
"""


def ran(script: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        cwd=TOP,
    )
    return done.returncode, done.stdout.strip()


@pytest.fixture
def modules(tmp_path: Path) -> str:
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    return str(tmp_path)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_waits_for_the_end_of_an_import(modules: str, name: str) -> None:
    script = COMMAND.format(path=modules, name=name, then="")
    assert ran(script) == (0, "inner outer interrupted")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_ends_by_the_signal_that_it_has_got(modules: str, name: str) -> None:
    script = COMMAND.format(path=modules, name=name, then="interrupts.finish()")
    status, _ = ran(script)
    assert status == -getattr(signal, name)


def test_after_ctrl_c_it_ends_by_itself(modules: str) -> None:
    script = COMMAND.format(path=modules, name="SIGINT", then="interrupts.finish()")
    assert ran(script)[0] == 0


def test_an_import_of_others_is_left_alone(modules: str) -> None:
    """It may be a user's, and take for ever."""
    then = (
        f"sys.path.append({modules!r})\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "try:\n"
        "    import inner\n"
        "except KeyboardInterrupt:\n"
        "    sys.stdout.write('at once')\n"
    )
    script = COMMAND.format(path=modules, name="SIGTERM", then=then)
    assert ran(script) == (0, "inner outer interrupted at once")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_the_second_signal_ends_the_process(name: str) -> None:
    script = (
        "import signal\n"
        "from inaccfs.cli import interrupts\n"
        "interrupts.take()\n"
        "try:\n"
        f"    signal.raise_signal(signal.{name})\n"
        "except KeyboardInterrupt:\n"
        "    print('first', flush=True)\n"
        f"signal.raise_signal(signal.{name})\n"
        "print('second')\n"
    )
    assert ran(script) == (-getattr(signal, name), "first")


def test_a_fork_ends_at_once() -> None:
    """A script that is run may have made it, with no thought of signals."""
    script = (
        "import os, signal\n"
        "from inaccfs.cli import interrupts\n"
        "interrupts.take()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGTERM)\n"
        "    finally:\n"
        "        os._exit(1)\n"
        "print(os.WTERMSIG(os.waitpid(pid, 0)[1]))\n"
    )
    assert ran(script) == (0, str(int(signal.SIGTERM)))


def test_signals_that_are_ignored_stay_so() -> None:
    script = (
        "import signal\n"
        "from inaccfs.cli import interrupts\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "interrupts.take()\n"
        "with interrupts.interruptible() as event:\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "    print(event.is_set())\n"
    )
    assert ran(script) == (0, "False")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_event_is_set_by_the_first_signal(name: str) -> None:
    script = (
        "import signal\n"
        "from inaccfs.cli import interrupts\n"
        "interrupts.take()\n"
        "try:\n"
        "    with interrupts.interruptible() as event:\n"
        f"        signal.raise_signal(signal.{name})\n"
        "        print('set' if event.is_set() else 'not set', end=' ', flush=True)\n"
        f"        signal.raise_signal(signal.{name})\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
        "interrupts.finish()\n"
    )
    status = 0 if name == "SIGINT" else -getattr(signal, name)
    assert ran(script) == (status, "set interrupted")


# --- putting signals off --------------------------------------------------------------


def test_a_signal_that_interrupts_the_beginning_loses_none_that_follow() -> None:
    """Handlers are replaced one by one; this comes after the first ones."""
    arrived: list[int] = []
    deferred = Deferred()
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [
        signal.signal(number, lambda number, _: arrived.append(number))
        for number in numbers
    ]
    try:
        with pytest.raises(KeyboardInterrupt):
            _enter(deferred)
        signal.raise_signal(signal.SIGUSR1)
        assert arrived == [signal.SIGUSR1]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _enter(deferred: Deferred) -> None:
    real = signal.signal

    def interrupted(number: int, handler: object) -> object:
        found = real(number, handler)  # type: ignore[arg-type]
        if number == signal.SIGUSR1:
            signal.raise_signal(signal.SIGINT)
        return found

    signal.signal = interrupted  # type: ignore[assignment]
    try:
        with deferred:
            pytest.fail("it has begun")
    finally:
        signal.signal = real
