"""Builds the kernel in stages, so that an interrupted build can continue.

A completed stage adds its name to the file `done`. The kernel is moved to its place in
the cache at the end, so that a kernel in the cache is always complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Final

from inaccfs import children, syscalls
from inaccfs.kvm.live import places
from inaccfs.kvm.live.places import Kernel, LiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from inaccfs.kvm.live.places import Source

_SELFTESTS: Final = "tools/testing/selftests/kvm"
# By directory; that of x86 has had two names.
_TESTS: Final = {
    (".",): ("guest_memfd_test", "set_memory_region_test", "pre_fault_memory_test"),
    ("x86_64", "x86"): ("private_mem_conversions_test", "private_mem_kvm_exits_test"),
}

# The time that a killed build may take to end, in seconds.
_PATIENCE: Final = 10.0
# How long make may take to end its own children.
_ENDING_SECONDS: Final = 1.5


def build(say: Callable[[str], None]) -> Kernel:
    """Build the kernel, unless it is in the cache; *say* is called with each stage.

    Raises:
        LiveError: packages are missing, the cache cannot be written, or a stage fails.
    """
    try:
        source = places.find_source()
    except LiveError:
        # A kernel in the cache can boot even if what built it is not installed any
        # more.
        with suppress(LiveError):
            return places.find_kernel()
        raise
    target = places.cache() / places.key(source)
    if not (target / "source").is_file():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(_beside(target, ".lock")):
                _Build(source, target, say).run()
        except OSError as exc:
            where = exc.filename or target.parent
            raise LiveError(f"cannot build: {where}: {exc.strerror}") from exc
    return Kernel(target, str(source))


def _beside(target: Path, ending: str) -> Path:
    # with_suffix() would take a part of the version for a suffix.
    return target.with_name(target.name + ending)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the build of this kernel, in a with block.

    The programs that a build runs inherit the lock: after a build is killed they may
    run for another moment.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LiveError(
                        f"another process builds this kernel: it has locked {path}"
                    ) from None
                time.sleep(0.1)
        os.set_inheritable(fd, True)
        yield
    finally:
        os.close(fd)


class _Build:
    """The build of one kernel."""

    def __init__(
        self, source: Source, target: Path, say: Callable[[str], None]
    ) -> None:
        self._source: Final = source
        self._target: Final = target
        self._say: Final = say
        self._work: Final = _beside(target, ".building")
        self._linux: Final = self._work / "linux"
        self._objects: Final = self._work / "objects"
        self._made: Final = Kernel(self._work / "result", str(source))

    def run(self) -> None:
        """Run the stages that are not done yet, and move the kernel to its place."""
        if (self._target / "source").is_file():
            # Another process has built it meanwhile.
            return
        stages = (
            ("unpack", f"unpacking {self._source}: 1.7 GB", self._unpack),
            ("configure", "configuring", self._configure),
            ("kernel", "building the kernel: some 15 minutes of CPU", self._kernel),
            ("selftests", "building the kernel's selftests of KVM", self._selftests),
        )
        self._work.mkdir(exist_ok=True)
        done = self._done()
        if done:
            self._say(f"going on in {self._work}, which was interrupted")
        with (self._work / "log").open("a") as log:
            for name, what, stage in stages:
                if name not in done:
                    self._say(what)
                    stage(log)
                    self._note(name)
        result = self._made.directory
        (result / "source").write_text(f"{self._source}\n")
        result.rename(self._target)
        shutil.rmtree(self._work)

    def _done(self) -> list[str]:
        try:
            return (self._work / "done").read_text().split()
        except FileNotFoundError:
            return []

    def _note(self, stage: str) -> None:
        with (self._work / "done").open("a") as file:
            file.write(f"{stage}\n")

    # --- stages -----------------------------------------------------------------------

    def _unpack(self, log: IO[str]) -> None:
        # An interrupted stage may have left a part of it.
        shutil.rmtree(self._linux, ignore_errors=True)
        self._linux.mkdir()
        tarball = str(self._source.tarball)
        self._call(log, "tar", "-xJf", tarball, "--strip-components=1")

    def _configure(self, log: IO[str]) -> None:
        self._objects.mkdir(exist_ok=True)
        fragment = self._work / "fragment"
        fragment.write_bytes(places.config())
        self._make(log, "tinyconfig")
        config = self._objects / ".config"
        merge = "scripts/kconfig/merge_config.sh"
        self._call(
            log, merge, "-m", "-O", str(self._objects), str(config), str(fragment)
        )
        self._make(log, "olddefconfig")
        # kconfig silently drops options whose dependencies are missing.
        taken = config.read_text().splitlines()
        wanted = places.config().decode().splitlines()
        lost = [each for each in wanted if each.endswith("=y") and each not in taken]
        if lost:
            raise LiveError(f"{self._source} does not take {', '.join(lost)}")

    def _kernel(self, log: IO[str]) -> None:
        self._make(log, "bzImage")
        result = self._made.directory
        result.mkdir(exist_ok=True)
        shutil.copy(self._objects / "arch/x86/boot/bzImage", self._made.image)
        shutil.copy(self._objects / ".config", result / "config")

    def _selftests(self, log: IO[str]) -> None:
        self._make(log, "headers")
        output = self._made.selftests
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        self._call(
            log,
            "make",
            "-s",
            _jobs(),
            "-C",
            _SELFTESTS,
            "ARCH=x86",
            f"OUTPUT={output}",
            f"KHDR_INCLUDES=-isystem {self._objects}/usr/include",
            "EXTRA_CFLAGS=-static",
            *(str(output / test) for test in self._tests()),
        )
        for path in [*output.rglob("*.o"), *output.rglob("*.d")]:
            path.unlink()

    def _tests(self) -> Iterator[str]:
        """The selftests that this kernel has, as paths relative to their directory."""
        for folders, names in _TESTS.items():
            for folder in folders:
                for name in names:
                    if (self._linux / _SELFTESTS / folder / f"{name}.c").is_file():
                        yield os.path.normpath(f"{folder}/{name}")

    # --- programs ---------------------------------------------------------------------

    def _make(self, log: IO[str], target: str) -> None:
        self._call(log, "make", "-s", _jobs(), f"O={self._objects}", target)

    def _call(self, log: IO[str], *command: str) -> None:
        """Run a program in the source directory. It ends with this process."""
        try:
            _run(command, self._linux, log)
        except FileNotFoundError:
            raise LiveError(f"there is no {command[0]}") from None
        except subprocess.CalledProcessError as exc:
            raise LiveError(
                f"{command[0]} failed with status {exc.returncode}: see {log.name}"
            ) from None


def _run(command: Sequence[str], directory: Path, log: IO[str]) -> None:
    with children.starting(command[0], LiveError):
        started = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # It inherits the lock.
            close_fds=False,
            # At this signal make ends its own children, which would outlive a SIGKILL.
            preexec_fn=partial(syscalls.die_with_parent, signal.SIGTERM),
            # Only the user reads its messages.
            env={**os.environ, "LC_ALL": "C"},
        )
    with started as process:
        try:
            status = process.wait()
        except BaseException:
            # make ends its own children.
            children.end(process, _ENDING_SECONDS)
            raise
    if status:
        raise subprocess.CalledProcessError(status, command)


def _jobs() -> str:
    return f"-j{len(os.sched_getaffinity(0))}"
