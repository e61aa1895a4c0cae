"""Runs a command in the emulated machine.

Its root file system is this machine's, read-only, by 9p: Python and this package have
the same paths there. Its /mnt is a directory of this machine, where the command writes
its results. QEMU needs no privileges, and emulates the whole CPU (TCG).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs import children, runtime, syscalls
from inaccfs.kvm.live.places import LiveError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from inaccfs.kvm.live.places import Kernel

_QEMU: Final = "qemu-system-x86_64"

# In seconds. A boot takes 4, and all rows take 20, on a quiet machine.
_LIMIT: Final = 600

_INIT: Final = """\
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/run TMPDIR=/run PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t 9p -o trans=virtio,version=9p2000.L,msize=131072 out /mnt
cd /run
/bin/sh /mnt/command >/mnt/stdout 2>/mnt/stderr </dev/null
echo $? >/mnt/status
sync
# QEMU runs with -no-reboot: it ends.
echo b >/proc/sysrq-trigger
"""


class Run(NamedTuple):
    """The result of a command."""

    status: int
    stdout: str
    stderr: str
    files: Mapping[str, bytes]
    """Other files that it has left in /mnt, by name."""


def run(kernel: Kernel, command: str, limit: float = _LIMIT) -> Run:
    """Boot *kernel*, run *command* with sh in it as root, and end.

    Raises:
        LiveError: QEMU is missing or fails, or the command does not end in *limit*
            seconds; the message says what was printed last.
    """
    with _folder() as out:
        (out / "command").write_text(f"{command}\n")
        init = out / "init"
        init.write_text(_INIT)
        init.chmod(0o755)
        said = _emulate(_arguments(kernel, out, init), limit)
        found = {
            path.name: path.read_bytes() for path in out.iterdir() if path.is_file()
        }
    try:
        status = int(found.pop("status"))
    except (KeyError, ValueError):
        console = found.get("console", b"").decode(errors="replace").splitlines()
        last = said.strip() or " / ".join(console[-3:]) or "nothing"
        raise LiveError(f"the emulated machine ended early; it said: {last}") from None
    stdout, stderr = (
        found.pop(name, b"").decode(errors="replace") for name in ("stdout", "stderr")
    )
    return Run(status, stdout, stderr, found)


@contextmanager
def _folder() -> Iterator[Path]:
    path = Path(runtime.temporary_directory("inaccfs-live-", LiveError))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _arguments(kernel: Kernel, out: Path, init: Path) -> list[str]:
    root = "rootfstype=9p rootflags=trans=virtio,version=9p2000.L,msize=131072"
    return [
        *("-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt", "-M", "q35"),
        *("-m", "1G", "-smp", "2"),
        *("-display", "none", "-no-reboot", "-nodefaults"),
        *("-serial", f"file:{out}/console"),
        *("-kernel", str(kernel.image), "-append"),
        f'console=ttyS0 panic=-1 root=root ro {root},cache=loose init="{init}"',
        *("-virtfs", f"{_virtfs('/', 'root')},readonly=on,multidevs=remap"),
        *("-virtfs", _virtfs(str(out), "out")),
    ]


def _virtfs(path: str, tag: str) -> str:
    # QEMU wants commas in values doubled.
    shown = path.replace(",", ",,")
    return f"local,path={shown},mount_tag={tag},id={tag},security_model=none"


def find_qemu() -> str:
    """The path of QEMU.

    Raises:
        LiveError: it is missing.
    """
    qemu = shutil.which(_QEMU)
    if qemu is None:
        raise LiveError(
            f"there is no {_QEMU}; as root: apt-get install -y "
            "--no-install-recommends qemu-system-x86"
        )
    return qemu


def _emulate(arguments: list[str], limit: float) -> str:
    """Run QEMU until it ends; returns what it printed."""
    with children.starting("QEMU", LiveError):
        started = subprocess.Popen(
            [find_qemu(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=syscalls.die_with_parent,
        )
    with started as process:
        try:
            _, said = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise LiveError(
                f"the emulated machine has not ended in {limit:g} seconds"
            ) from None
        except BaseException:
            children.kill(process)
            raise
    return said


def python(module: str, *arguments: str) -> str:
    """A command that runs a *module* of this package with this Python."""
    # The directory that holds the package: this file is inaccfs/kvm/live/boot.py.
    top = str(Path(__file__).absolute().parents[3])
    # Without site: only the standard library is needed, and imports are slow.
    interpreter = os.path.realpath(sys.executable)
    words = [interpreter, "-S", "-s", "-m", module, *arguments]
    return f"PYTHONPATH={shlex.quote(top)} exec {shlex.join(words)}"
