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
from inaccfs.cli import signals
inaccfs.__path__.append({path!r})
sys.number = signal.{name}
sys.stdout.reconfigure(write_through=True)
signals.take()
try:
    import inaccfs.outer
except KeyboardInterrupt:
    sys.stdout.write("interrupted ")
{then}
"""

# A clock that the script sets: signals at the same time are one.
CLOCK: Final = """
import signal, time
now = 0.0
time.monotonic = lambda: now
from inaccfs.cli import interrupts, signals
signals.take()
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
    script = COMMAND.format(path=modules, name=name, then="signals.finish()")
    status, _ = ran(script)
    assert status == -getattr(signal, name)


def test_after_ctrl_c_it_ends_by_itself(modules: str) -> None:
    script = COMMAND.format(path=modules, name="SIGINT", then="signals.finish()")
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
        f"{CLOCK}"
        "try:\n"
        f"    signal.raise_signal(signal.{name})\n"
        "except KeyboardInterrupt:\n"
        "    print('first', flush=True)\n"
        "now += 1\n"
        f"signal.raise_signal(signal.{name})\n"
        "print('second')\n"
    )
    assert ran(script) == (-getattr(signal, name), "first")


@pytest.mark.parametrize("again", ["SIGTERM", "SIGHUP"])
def test_a_signal_right_after_the_first_is_the_same(again: str) -> None:
    """As those of timeout(1), to its child and then to the group."""
    script = (
        f"{CLOCK}"
        "try:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "except KeyboardInterrupt:\n"
        "    print('first', end=' ')\n"
        f"signal.raise_signal(signal.{again})\n"
        "print('undone', flush=True)\n"
        "signals.finish()\n"
    )
    assert ran(script) == (-signal.SIGTERM, "first undone")


def test_a_signal_does_what_ctrl_c_does() -> None:
    """A script may have a handler of its own for that, and so has an event loop."""
    script = (
        f"{CLOCK}"
        "def handler(number, frame):\n"
        "    print(number == signal.SIGINT, frame is sys._getframe(2), flush=True)\n"
        "import sys\n"
        "signal.signal(signal.SIGINT, handler)\n"
        "signal.raise_signal(signal.SIGTERM)\n"
        "signals.finish()\n"
    )
    assert ran(script) == (-signal.SIGTERM, "True True")


def test_a_signal_does_not_break_trio() -> None:
    """Wherever it is: at each line of trio's own the script gets one."""
    script = (
        f"{CLOCK}"
        "import sys, trio, trio.testing\n"
        "found = set()\n"
        "class Tracer:\n"
        "    def __init__(self, at):\n"
        "        self.left = at\n"
        "    def __call__(self, frame, event, _):\n"
        "        if '/trio/' not in frame.f_code.co_filename:\n"
        "            return None\n"
        "        if event == 'line':\n"
        "            self.left -= 1\n"
        "            if self.left == 0:\n"
        "                signal.raise_signal(signal.SIGTERM)\n"
        "        return self\n"
        "async def main(tracer):\n"
        "    async with trio.open_nursery() as nursery:\n"
        "        nursery.start_soon(trio.sleep, 0)\n"
        "        sys.settrace(tracer)\n"
        "        await trio.sleep(0)\n"
        "    sys.settrace(None)\n"
        "at, left = 0, 0\n"
        "while left <= 0:\n"
        "    at, now, signals._taken = at + 1, now + 1, None\n"
        "    tracer = Tracer(at)\n"
        "    try:\n"
        "        trio.run(main, tracer, clock=trio.testing.MockClock())\n"
        "    except KeyboardInterrupt:\n"
        "        found.add('interrupted')\n"
        "    except BaseExceptionGroup as group:\n"
        "        assert group.subgroup(KeyboardInterrupt)\n"
        "        assert not group.split(KeyboardInterrupt)[1]\n"
        "        found.add('interrupted')\n"
        "    except BaseException as exc:\n"
        "        found.add(type(exc).__name__)\n"
        "    finally:\n"
        "        sys.settrace(None)\n"
        "    left = tracer.left\n"
        "print(at > 50, *found)\n"
    )
    assert ran(script) == (0, "True interrupted")


def test_a_signal_as_the_interpreter_ends_has_its_default_action() -> None:
    """It waits for the threads of a script."""
    script = (
        f"{CLOCK}"
        "import os, threading\n"
        "def work():\n"
        "    threading.main_thread().join()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Event().wait(60)\n"
        "threading.Thread(target=work).start()\n"
        "signals.finish()\n"
    )
    assert ran(script) == (-signal.SIGTERM, "")


def test_a_fork_ends_at_once() -> None:
    """A script that is run may have made it, with no thought of signals."""
    script = (
        "import os, signal\n"
        "from inaccfs.cli import interrupts, signals\n"
        "signals.take()\n"
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
        "from inaccfs.cli import interrupts, signals\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "signals.take()\n"
        "with interrupts.interruptible() as event:\n"
        "    signal.raise_signal(signal.SIGHUP)\n"
        "    print(event.is_set())\n"
    )
    assert ran(script) == (0, "False")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_event_is_set_by_the_first_signal(name: str) -> None:
    script = (
        f"{CLOCK}"
        "try:\n"
        "    with interrupts.interruptible() as event:\n"
        f"        signal.raise_signal(signal.{name})\n"
        "        now += 1\n"
        "        print('set' if event.is_set() else 'not set', end=' ', flush=True)\n"
        f"        signal.raise_signal(signal.{name})\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
        "signals.finish()\n"
    )
    status = 0 if name == "SIGINT" else -getattr(signal, name)
    assert ran(script) == (status, "set interrupted")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_one_right_after_the_first_does_not_interrupt(name: str) -> None:
    """Wherever it is: at each line that the handler of the first one executes."""
    script = (
        f"{CLOCK}"
        "import sys\n"
        "class Tracer:\n"
        "    def __init__(self, at):\n"
        "        self.left = at\n"
        "    def __call__(self, frame, event, _):\n"
        "        self.left -= event == 'line'\n"
        "        if self.left == 0:\n"
        f"            signal.raise_signal(signal.{name})\n"
        "        return self\n"
        "at, left = 0, 0\n"
        "while left <= 0:\n"
        "    at, now, signals._taken = at + 1, now + 1, None\n"
        "    tracer = Tracer(at)\n"
        "    with interrupts.interruptible() as event:\n"
        "        sys.settrace(tracer)\n"
        f"        signal.raise_signal(signal.{name})\n"
        "        sys.settrace(None)\n"
        "        assert event.is_set()\n"
        "    left = tracer.left\n"
        "print(at > 5)\n"
    )
    assert ran(script) == (0, "True")


def test_an_import_of_another_thread_does_not_matter(tmp_path: Path) -> None:
    """It executes a module while the main thread gets a signal in one."""
    (tmp_path / "outer.py").write_text(MODULES["inner.py"])
    (tmp_path / "slow.py").write_text("import sys\nsys.begun.set()\nsys.go.wait()\n")
    script = COMMAND.format(path=str(tmp_path), name="SIGTERM", then="sys.go.set()")
    script = script.replace(
        "try:",
        "import threading\n"
        "from importlib import import_module\n"
        "sys.begun, sys.go = threading.Event(), threading.Event()\n"
        "threading.Thread(target=import_module, args=['inaccfs.slow']).start()\n"
        "sys.begun.wait()\n"
        "try:",
    )
    assert ran(script) == (0, "inner interrupted")


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
