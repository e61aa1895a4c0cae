"""A mount namespace for a test, so that nothing global changes."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.mount import support

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class PrivateNamespace:
    """A mount namespace that a child process keeps."""

    pid: int

    def enter(self, *command: str | Path) -> list[str]:
        """The command line of a *command* that runs inside."""
        return ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--", *map(str, command)]

    def run(
        self, *command: str | Path, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        return support.run(*self.enter(*command), **options)

    def shell(self, script: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a shell script inside."""
        return self.run("sh", "-euc", script, **options)


# Other tests' mounts: a copy would keep each daemon after its test has unmounted it. No
# daemon is asked, because one may be stopped; and one may end meanwhile.
_WITHOUT_MOUNTS: Final = (
    "umount --all --types fuse.inaccfs --lazy --internal-only --no-canonicalize "
    "2> /dev/null || true\n"
)


@contextmanager
def private_namespace(
    script: str = "", *, copies: bool = False
) -> Iterator[PrivateNamespace]:
    """A new mount namespace, set up by a shell *script*; ends with its last process.

    It has no inaccfs mount, or *copies* of all.
    """
    if os.geteuid() != 0:
        pytest.skip("a mount namespace needs root")
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no unshare(1) or nsenter(1)")
    with subprocess.Popen(
        [
            *("unshare", "--mount", "--propagation", "private", "sh", "-euc"),
            f"{'' if copies else _WITHOUT_MOUNTS}{script}\necho ready; exec cat",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"no mount namespace: {holder.stderr.read().strip()}")
        try:
            yield PrivateNamespace(holder.pid)
        finally:
            # It ends by itself at the end of its input.
            holder.stdin.close()
            holder.wait(support.PATIENCE)


def quoted(path: Path) -> str:
    """A path as a word of a shell script."""
    return shlex.quote(str(path))
