"""A user without privileges, in a mount namespace of the test's own."""

from __future__ import annotations

import json
import os
import signal
import sys
import sysconfig
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mount import support
from tests.mount.namespaces import PrivateNamespace, quoted
from tests.mount.support import NOBODY, TOP, run

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator


class Nobody:
    """A user without privileges, with a home and a runtime directory."""

    def __init__(
        self, namespace: PrivateNamespace, home: Path, root: str = "/"
    ) -> None:
        self.namespace = namespace
        self.home = home
        # The root directory of the user's processes.
        self._root = root
        self.point = home / "mnt"
        self.runtime = home / "run"
        self.log = home / "log"
        self.environment = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": ":".join(str(home / name) for name in BINDS),
            "LD_LIBRARY_PATH": str(home / "python" / "lib"),
            "LC_ALL": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def command(self, *words: str | Path) -> list[str]:
        """The command line that runs *command* as this user."""
        return self.namespace.enter(
            "chroot",
            self._root,
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "env",
            "-i",
            *(f"{k}={v}" for k, v in self.environment.items()),
            *words,
        )

    def python(self, *words: str | Path) -> list[str]:
        """The command line of a Python program."""
        name = Path(sys.executable).resolve().name
        return self.command(self.home / "python" / "bin" / name, *words)

    def run(
        self, *words: str | Path, status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user."""
        return run(*self.command(*words), status=status)

    def inaccfs(
        self, *words: str | Path, status: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run inaccfs as this user."""
        return run(*self.python("-m", "inaccfs", *words), status=status)

    def umount_stopped(self) -> str:
        """What inaccfs umount prints, with status 0, if the daemon is stopped."""
        return run(*self.python("-c", support.HASTY, "umount", self.point)).stderr

    def complaint(self, *words: str | Path) -> str:
        """The error message of inaccfs: exactly one line."""
        message = self.inaccfs(*words, status=1).stderr
        assert message.startswith("inaccfs: "), message
        assert message.count("\n") == 1, message
        return message

    @contextmanager
    def mounted(self, *words: str) -> Iterator[str]:
        """A mount; gives its warnings. Asserts at the end that nothing is left."""
        warnings = self.inaccfs("mount", "--log", self.log, *words, self.point).stderr
        daemon = os.pidfd_open(int(self.pid()))
        try:
            yield warnings
            if support.wait_readable(daemon, 0) is False:
                self.inaccfs("umount", self.point)
            assert support.wait_readable(daemon, 0)
            assert self.run("ls", "-A", self.runtime).stdout == "inaccfs\n"
            assert self.run("ls", "-A", self.runtime / "inaccfs").stdout == ""
            assert self.run("ls", "-A", self.point).stdout == ""
            support.assert_clean(self.run("cat", self.log, status=None).stdout)
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(daemon, signal.SIGKILL)
            support.wait_readable(daemon)
            os.close(daemon)

    def status(self) -> dict[str, object]:
        """The status of the mount."""
        words = ("getfattr", "--only-values", "-n", "user.inaccfs.status", "-h")
        found: dict[str, object] = json.loads(
            self.run(*words, "--absolute-names", self.point).stdout
        )
        return found

    def pid(self) -> str:
        """The pid of the daemon."""
        return str(self.status()["pid"])


PACKAGES = [sysconfig.get_path(name) for name in ("purelib", "platlib")]

# By name in the home: what the user may read there. Only root may enter the original
# directories.
BINDS = {
    f"lib{number}": Path(path)
    for number, path in enumerate(dict.fromkeys([str(TOP), *PACKAGES]))
} | {"python": Path(sys.base_prefix)}


def setup_script(home: Path) -> str:
    """The shell script that makes the namespace."""
    lines = [
        "mount -t tmpfs -o mode=755 inaccfs-test HOME",
        "cd HOME",
        "mkdir mnt run dev",
    ]
    for name, path in BINDS.items():
        lines += [f"mkdir {name}", f"mount --bind {quoted(path)} {name}"]
    lines += [
        "chown UID:UID . mnt run; chmod 700 run",
        "mount -t tmpfs -o mode=755,dev inaccfs-test dev",
        "mknod -m 666 dev/fuse c 10 229; chmod 666 dev/fuse",
        "mount --bind dev/fuse /dev/fuse",
    ]
    script = "\n".join(lines)
    return script.replace("HOME", quoted(home)).replace("UID", str(NOBODY))


def need_user_namespace(user: Nobody) -> None:
    """Skip unless *user* may make a user namespace."""
    ran = user.run("unshare", "--user", "--mount", "true", status=None)
    if ran.returncode:
        pytest.skip(f"no user namespaces: {ran.stderr.strip()}")
