"""`inaccfs kvm` in this process, and on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

from inaccfs.cli import main
from tests.mount import support
from tests.mount.support import ENVIRONMENT, PATIENCE, inaccfs_command

if TYPE_CHECKING:
    from pathlib import Path


def kvm(*arguments: str | Path, status: int = 0) -> tuple[str, str]:
    """Run `inaccfs kvm` in this process; return both outputs."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            found = main(["kvm", *map(str, arguments)])
        except SystemExit as exc:
            found = exc.code if isinstance(exc.code, int) else 1
    assert found == status, (out.getvalue(), err.getvalue())
    return out.getvalue(), err.getvalue()


def on_terminal(*arguments: str | Path, variables: dict[str, str]) -> str:
    """The output of `inaccfs kvm` if both outputs are a terminal."""
    ours, theirs = pty.openpty()
    environment = {
        name: text for name, text in ENVIRONMENT.items() if name != "NO_COLOR"
    }
    child = subprocess.Popen(
        inaccfs_command("kvm", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**environment, "TERM": "xterm", **variables},
    )
    os.close(theirs)
    found = bytearray()
    try:
        # EIO is the end of a terminal without users.
        while data := _read_terminal(ours):
            found += data
        assert child.wait(PATIENCE) == 0, bytes(found)
    finally:
        os.close(ours)
        child.kill()
        child.wait()
    return found.decode()


def _read_terminal(fd: int) -> bytes:
    assert support.wait_readable(fd)
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""
