"""What the benchmarks share: figures, tables, pinning, and servers that always end.

Everything is mounted on a fresh temporary directory, and unmounted on every way out
(SIGTERM included; only SIGKILL leaves a mount).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
GIB = 1 << 30

START_TIMEOUT = 20.0
STOP_TIMEOUT = 20.0


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows a benchmark's own docstring as its help."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def begin() -> None:
    """Name the machine under the figures, and make SIGTERM run the finally blocks."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(
        f"Linux {platform.release()}, {os.cpu_count()} CPUs,"
        f" Python {platform.python_version()}, pyfuse3 {version('pyfuse3')},"
        f" load {os.getloadavg()[0]:.1f}"
    )


# Figures


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all samples do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]


def print_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table: the first column to the left, the figures to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    print(f"\n{title}")
    for row in (header, *rows):
        first, *rest = (
            f"{cell:{'>' if place else '<'}{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join((first, *rest)).rstrip())


# Processes


def pin(pid: int, cpu: int) -> None:
    """Keep every thread of a process, and those it will start, on one CPU."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), {cpu})


def memory_available() -> int:
    """The bytes that are available without swapping, as the kernel estimates."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def resident(pid: int) -> int:
    """The bytes of memory that a process has resident (VmRSS)."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no memory any more")


# Mounts


def is_mounted(path: str) -> bool:
    """Whether something is mounted at `path`, by the kernel and not the server."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        return any(line.split(" ", 5)[4] == path for line in lines)


def unmount(path: str) -> None:
    """Unmount `path` if anything is mounted there; at once, even if it is busy."""
    if is_mounted(path):
        tool = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        if subprocess.run([*tool, path], check=False).returncode != 0:
            lazily = "-l" if tool == ["umount"] else "-z"
            subprocess.run([*tool, lazily, path], check=False)


def new_directory() -> str:
    """A new temporary directory, by the name that the mount table will show."""
    return os.path.realpath(tempfile.mkdtemp(prefix="inaccfs-bench-"))


@contextmanager
def serving(*command: str, cpu: int) -> Iterator[str]:
    """Run a FUSE server on one CPU; yield its mount point, its last argument."""
    path = new_directory()
    server = subprocess.Popen([*command, path])
    try:
        pin(server.pid, cpu)
        deadline = time.monotonic() + START_TIMEOUT
        while not is_mounted(path):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"did not mount: {shlex.join(command)}")
            time.sleep(0.01)
        yield path
    finally:
        unmount(path)
        stop(server)
        os.rmdir(path)


def stop(server: subprocess.Popen[bytes]) -> None:
    """Wait for a server that was unmounted; end it if it does not end by itself."""
    try:
        server.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        print(f"killed, as it did not end: {server.args!r}", file=sys.stderr)
        server.kill()
        server.wait()


@contextmanager
def tmpfs(size: int) -> Iterator[str]:
    """A directory on a tmpfs: a new mount for root, otherwise one in /dev/shm."""
    if os.geteuid() != 0:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
            yield path
        return
    path = new_directory()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", path]
        subprocess.run(mount, check=True)
        yield path
    finally:
        unmount(path)
        os.rmdir(path)


# Servers to compare with


@contextmanager
def compiled_floor() -> Iterator[str]:
    """Compile floor.c; yield the program."""
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/floor"
        source = str(Path(__file__).with_name("floor.c"))
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O2", "-o", program, source, *flags], check=True)
        yield program


@contextmanager
def fetched_passthroughfs(given: str | None) -> Iterator[str]:
    """Yield passthroughfs.py: the one given, or the one in pyfuse3's sdist.

    pyfuse3's wheel has no examples, so pip fetches the source distribution of the
    version that is installed here.
    """
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as directory:
        wanted = f"pyfuse3=={version('pyfuse3')}"
        fetch = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps"]
        fetch += ["--no-binary", ":all:", "--dest", directory, wanted]
        subprocess.run(fetch, check=True)
        (sdist,) = Path(directory).glob("*.tar.gz")
        program = Path(directory, "passthroughfs.py")
        with tarfile.open(sdist) as archive:
            name = f"{archive.getnames()[0].split('/')[0]}/examples/passthroughfs.py"
            member = archive.extractfile(name)
            assert member is not None
            program.write_bytes(member.read())
        yield str(program)


def bindfs() -> str | None:
    """The bindfs program, if it is installed."""
    return shutil.which("bindfs")


# System calls that Python lacks

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), once, with the GIL released."""
    if libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
