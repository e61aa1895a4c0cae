"""`inaccfs compare`: one script under several semantics."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import termios
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from inaccfs.cli import main
from tests.mount.support import (
    ENVIRONMENT,
    PATIENCE,
    TOP,
    ask_until,
    inaccfs_command,
    state,
    wait_for_exit,
    wait_readable,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Compare = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.fuse

PAGE = TOP / "docs" / "experiments" / "README.md"


@pytest.fixture
def compare(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Compare:
    """Compares a script, whose text is given."""

    def compare(script: str, *words: str) -> tuple[int, str, str]:
        path = tmp_path / "script.py"
        path.write_text(dedent(script))
        try:
            status = main(["compare", str(path), *words])
        except SystemExit as exc:
            status = int(exc.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return compare


TWO = ("--semantics", "v8", "--semantics", "v10")


def test_the_example_of_the_page(compare: Compare) -> None:
    found = re.search(
        r"\$ cat punch\.py\n(.*?)\$ inaccfs compare punch\.py (.*?)\n(.*?)```",
        PAGE.read_text(),
        re.DOTALL,
    )
    assert found is not None
    script, words, shown = found.groups()
    status, out, err = compare(script, *words.split())
    assert (status, err) == (0, "")
    before, seconds = out.rstrip().rsplit("\n", 1)
    assert before == shown.rstrip().rsplit("\n", 1)[0]
    assert re.fullmatch(r"seconds +\d+\.\d{3} +\d+\.\d{3}", seconds)


def test_what_a_script_raises_is_an_outcome(compare: Compare) -> None:
    script = """
        import sys
        rules = shim.query_semantics().name
        if rules == "v8":
            sys.exit(7)
        shim.close()
        raise KeyError(rules)
    """
    status, out, err = compare(script, *TWO)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["v8", "v10"]
    assert rows[1] == ["status", "7", "1"]
    assert rows[2] == ["error", "-", "KeyError:", "'v10'"]
    # The script has closed the client, so there are no counts.
    assert ["shim", "fallocates", "0", "-"] in rows


def test_nothing_differs(compare: Compare) -> None:
    status, out, _ = compare("print(1)", *TWO)
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["nothing", "seconds"]
    _, out, _ = compare("print(1)", *TWO, "--all")
    assert re.search(r"^output 1 +1 +1$", out, re.MULTILINE)
    assert re.search(r"^kvm faults +0 +0$", out, re.MULTILINE)


def test_a_script_that_fails_everywhere_is_seen(compare: Compare) -> None:
    status, out, _ = compare("1 / 0", *TWO)
    assert status == 0
    rows = [re.split("  +", line) for line in out.splitlines()[1:-1]]
    why = "ZeroDivisionError: division by zero"
    assert rows == [["status", "1", "1"], ["error", why, why], ["nothing differs"]]


def test_json(compare: Compare) -> None:
    status, out, _ = compare("print(*__import__('sys').argv[1:])", "a", *TWO, "--json")
    assert status == 0
    runs = json.loads(out)
    assert [(one["semantics"], one["stdout"]) for one in runs] == [
        ("v8", ["a"]),
        ("v10", ["a"]),
    ]
    assert all(one["shim"]["fallocates"] == 0 for one in runs)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("--semantics", "v8"), 2, "give --semantics twice or more"),
        ((*TWO, "--semantics", "v12"), 2, "unknown semantics 'v12': did you mean"),
        ((*TWO, "-o", "size=3x"), 2, "size '3x' is not a size"),
        ((*TWO, "-o", "uid=4294967295"), 1, "uid"),
        ((*TWO, "-o", "backing=/proc"), 1, "/proc"),
    ],
)
def test_wrong_words_are_one_line(
    compare: Compare, words: tuple[str, ...], status: int, text: str
) -> None:
    found, out, err = compare("", *words)
    assert (found, out) == (status, "")
    assert err.startswith("inaccfs: ")
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("call", "how"),
    [("os._exit(9)", "status 9"), ("os.kill(os.getpid(), 9)", "signal 9")],
)
def test_a_script_that_ends_its_process(compare: Compare, call: str, how: str) -> None:
    status, out, err = compare(f"import os; {call}", *TWO)
    assert (status, out) == (1, "")
    assert err.endswith(f"has ended its process on v8 ({how}): use sys.exit()\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_script_that_hangs_ends_with_the_comparison(
    tmp_path: Path, number: signal.Signals
) -> None:
    pids, script = tmp_path / "pids", tmp_path / "script.py"
    script.write_text(
        dedent(f"""
            import os, signal
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with open("{pids}.new", "w") as file:
                print(os.getpid(), mount.pid, file=file)
            os.rename("{pids}.new", "{pids}")
            while True:
                signal.pause()
        """)
    )
    command = inaccfs_command("compare", script, *TWO)
    with subprocess.Popen(command, env=ENVIRONMENT) as comparing:
        try:
            ask_until(lambda: pids.exists() or comparing.poll() is not None)
            runs, daemon = map(int, pids.read_text().split())
            comparing.send_signal(number)
            assert comparing.wait(PATIENCE) == -number
        finally:
            comparing.kill()
    # Neither is a child of ours.
    wait_for_exit(runs)
    wait_for_exit(daemon)


def test_ctrl_z_stops_the_run_and_fg_continues_it(scratch: Path) -> None:
    """On a terminal, under a shell with job control."""
    ready, go_on = scratch / "ready", scratch / "go"
    (scratch / "script.py").write_text(
        dedent(f"""
            import os, time
            with open("{ready}.new", "w") as file:
                print(os.getpid(), file=file)
            os.rename("{ready}.new", "{ready}")
            while not os.path.exists("{go_on}"):
                time.sleep(0.01)
        """)
    )
    words = ("compare", scratch / "script.py", *TWO)
    command = shlex.join(inaccfs_command(*words))
    ours, theirs = os.openpty()
    with (
        open(ours, "wb", buffering=0) as keyboard,
        subprocess.Popen(
            ["sh", "-mc", f"{command}; echo stopped $?; read enter; fg; echo ended $?"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=ENVIRONMENT,
            start_new_session=True,
            # Only a session leader can get a terminal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        ) as shell,
    ):
        os.close(theirs)
        try:
            ask_until(ready.exists)
            run = int(ready.read_text())
            keyboard.write(b"\x1a")
            ask_until(lambda: state(run) == "T")
            shown = shown_until(ours, f"stopped {128 + signal.SIGTSTP}")
            assert "Traceback" not in shown
            assert state(run) == "T"
            keyboard.write(b"\n")
            ask_until(lambda: state(run) != "T")
            go_on.touch()
            assert "nothing differs" in shown_until(ours, "ended 0")
            assert shell.wait(PATIENCE) == 0
        finally:
            shell.kill()


def shown_until(terminal: int, text: str) -> str:
    """What a terminal shows, up to *text*."""
    shown = b""
    while text.encode() not in shown:
        assert wait_readable(terminal), shown
        shown += os.read(terminal, 4096)
    return shown.decode(errors="replace")


def test_a_script_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "/nowhere/x.py", *TWO]) == 1
    assert capsys.readouterr() == (
        "",
        "inaccfs: cannot read '/nowhere/x.py': no such file\n",
    )
