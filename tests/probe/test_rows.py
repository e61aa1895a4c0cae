"""The probe's rows on each kind of memory that the kernel has: known outcomes.

The expected outcomes were measured with small programs, or are asserted by the kernel's
own selftests (memfd_secret.c, guest_memfd_test.c).
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import inaccfs
from inaccfs.probe import outcomes, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inaccfs.probe.attempts import Row

PAGE: Final = mmap.PAGESIZE
TOP: Final = str(Path(inaccfs.__file__).parent.parent)
ROWS: Final = {row.name: row for row in table.ROWS}


# Tries all rows in their order, or backwards.
PROBE: Final = """
import json, sys
from inaccfs.probe import naming, table, targets
from inaccfs.probe.attempts import attempt
name, order = sys.argv[1:]
try:
    target = naming.find(name)
except targets.ProbeError as exc:
    sys.exit(str(exc))
rows = table.ROWS if order == "forwards" else reversed(table.ROWS)
print(json.dumps({row.name: attempt(target, row) for row in rows}))
"""


@cache
def probe(name: str, order: str = "forwards") -> Mapping[str, str]:
    """The outcomes of all rows by name; skip if the machine lacks such files.

    A small process forks a child for each row much faster than this one.
    """
    ran = subprocess.run(
        [sys.executable, "-c", PROBE, name, order],
        env={**os.environ, "PYTHONPATH": TOP},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        assert ran.stderr.count("\n") == 1, ran.stderr
        pytest.skip(ran.stderr.strip())
    found: dict[str, str] = json.loads(ran.stdout)
    return found


def assert_has(found: Mapping[str, str], expected: dict[str, str]) -> None:
    """*found* has the *expected* outcomes, of calls that the machine has."""
    assert {
        name: outcome
        for name, outcome in found.items()
        if name in expected and outcomes.was_tried(outcome)
    } == {
        name: outcome
        for name, outcome in expected.items()
        if outcomes.was_tried(found[name])
    }


def test_a_memfd_can_do_all() -> None:
    found = probe("memfd")
    assert_has(
        found,
        {
            "first size unaligned": "ok, size 100",
            "ftruncate the same size": "ok",
            "ftruncate larger": f"ok, size {8 * PAGE}",
            "ftruncate smaller": f"ok, size {3 * PAGE}",
            "truncate /proc/self/fd": f"ok, size {8 * PAGE}",
            "open /proc/self/fd O_TRUNC": "ok, size 0",
            "io_uring ftruncate": f"ok, size {8 * PAGE}",
            "fallocate mode 0": "ok",
            "fallocate mode 0 across the end": f"ok, size {5 * PAGE}",
            "fallocate KEEP_SIZE past the end": "ok",
            "fallocate PUNCH_HOLE|KEEP_SIZE unaligned offset": "ok",
            "fallocate PUNCH_HOLE": "EOPNOTSUPP",
            "io_uring fallocate PUNCH_HOLE|KEEP_SIZE": "ok",
            "FS_IOC_RESVSP64": "ok",
            "read": "ok 4096 bytes",
            "read 0 bytes": "ok 0 bytes",
            "pread past the end": "ok 0 bytes",
            "splice to a pipe": "ok 4096 bytes",
            "sendfile to a socket": "ok 4096 bytes",
            "copy_file_range within the file": "ok 4096 bytes",
            "io_uring read": "ok 4096 bytes",
            "io_uring readv": "ok 4096 bytes",
            "io_uring read, fixed buffer": "ok 4096 bytes",
            "io_uring splice to a pipe": "ok 4096 bytes",
            "AIO pread": "ok 4096 bytes",
            "AIO preadv": "ok 4096 bytes",
            "write after F_SETFL O_APPEND": f"ok 4096 bytes, size {5 * PAGE}",
            "pwrite past the end": f"ok 4096 bytes, size {5 * PAGE}",
            "splice from a pipe, at an offset": "ok 4096 bytes",
            "sendfile from a memfd": "ok 4096 bytes",
            "io_uring write": "ok 4096 bytes",
            "AIO pwritev": "ok 4096 bytes",
            "mmap MAP_SHARED PROT_NONE": "ok",
            "mmap MAP_SHARED PROT_READ": "ok, read zeros",
            "mmap MAP_PRIVATE PROT_WRITE": "ok, write ok",
            "mmap MAP_SHARED PROT_READ past the end": "ok, read SIGBUS",
            "mmap MAP_SHARED|MAP_HUGETLB": "EINVAL",
            "process_vm_readv of a mapping": "ok 4096 bytes",
            "write to a mapping by /proc/self/mem": "ok 4096 bytes",
            "ptrace PEEKDATA of a mapping": "ok",
            "IORING_REGISTER_BUFFERS of a mapping": "ok",
            "vmsplice of a mapping": "ok 4096 bytes",
            "MADV_REMOVE of a mapping": "ok",
            "mremap of a mapping": "ok, read zeros",
            "remap_file_pages of a mapping": "ok, read zeros",
            "UFFDIO_REGISTER of a mapping": "ok, UFFDIO_COPY ok",
            "lseek SEEK_END": f"ok {4 * PAGE}",
            "fstat st_blocks": f"ok {2 * PAGE} bytes",
            "fstat st_blocks after a punch": f"ok {PAGE} bytes",
            "fstatfs f_type": "ok 0x1021994",
            "FIONREAD": f"ok {4 * PAGE:#x}",
            "TCGETS": "ENOTTY",
            "open /proc/self/fd O_RDWR": "ok",
            # The content, zeros, is not a program; so it was read.
            "execveat": "ENOEXEC",
            "execve /proc/self/fd": "ENOEXEC",
            "flock": "ok",
            "F_OFD_SETLK": "ok",
            "fsync": "ok",
            "fchmod": "ok",
            "F_GET_SEALS": "ok 0x0",
            "F_ADD_SEALS F_SEAL_WRITE": "ok",
            "F_ADD_SEALS F_SEAL_SEAL": "ok",
        },
    )


def test_memfd_secret_is_mapped_but_not_reached_otherwise() -> None:
    assert_has(
        probe("memfd_secret"),
        {
            "first size": f"ok, size {4 * PAGE}",
            "ftruncate larger": "EINVAL",
            "fallocate KEEP_SIZE": "EOPNOTSUPP",
            "read": "EINVAL",
            "write": "EINVAL",
            "pread": "ESPIPE",
            "pwrite": "ESPIPE",
            "splice to a pipe": "EINVAL",
            "mmap MAP_SHARED PROT_READ": "ok, read zeros",
            "mmap MAP_SHARED PROT_READ|PROT_WRITE": "ok, write ok",
            "mmap MAP_PRIVATE PROT_READ": "EINVAL",
            "mmap MAP_SHARED PROT_READ past the end": "ok, read SIGBUS",
            # Accesses through the page are refused, not those through the mapping.
            "process_vm_readv of a mapping": "EFAULT",
            "read of a mapping by /proc/self/mem": "EIO",
            "ptrace PEEKDATA of a mapping": "EIO",
            "IORING_REGISTER_BUFFERS of a mapping": "EFAULT",
            "vmsplice of a mapping": "EFAULT",
            "write of a mapping to a pipe": "ok 4096 bytes",
            "open /proc/self/fd O_RDWR": "ENXIO",
            "F_GET_SEALS": "EINVAL",
        },
    )


GUEST_MEMFD: Final = {
    "first size 0": "EINVAL",
    "first size negative": "EINVAL",
    "first size unaligned": "EINVAL",
    "first size": f"ok, size {4 * PAGE}",
    "ftruncate the same size": "EINVAL",
    "ftruncate larger": "EINVAL",
    "fallocate mode 0": "EOPNOTSUPP",
    "fallocate KEEP_SIZE": "ok",
    "fallocate KEEP_SIZE at the end": "EINVAL",
    "fallocate KEEP_SIZE across the end": "EINVAL",
    "fallocate KEEP_SIZE unaligned offset": "EINVAL",
    "fallocate PUNCH_HOLE|KEEP_SIZE": "ok",
    "fallocate PUNCH_HOLE|KEEP_SIZE past the end": "ok",
    "fallocate PUNCH_HOLE|KEEP_SIZE unaligned length": "EINVAL",
    "fallocate ZERO_RANGE": "EOPNOTSUPP",
    "read": "EINVAL",
    "pread": "ESPIPE",
    "write": "EINVAL",
    "pwrite": "ESPIPE",
    "sendfile to a socket": "ESPIPE",
    "copy_file_range within the file": "EINVAL",
    "io_uring read": "EINVAL",
    "AIO pread": "EINVAL",
    "lseek SEEK_SET": "ESPIPE",
    "F_GET_SEALS": "EINVAL",
    "fsync": "EINVAL",
    "fchmod": "EINVAL",
    "open /proc/self/fd O_RDWR": "ENXIO",
}


def test_guest_memfd_is_not_reached() -> None:
    assert_has(
        probe("guest_memfd"),
        {
            **GUEST_MEMFD,
            "mmap MAP_SHARED PROT_READ": "ENODEV",
            "mmap MAP_PRIVATE PROT_READ": "ENODEV",
            "process_vm_readv of a mapping": "no mapping, ENODEV",
        },
    )


def test_guest_memfd_that_is_mapped_is_private() -> None:
    """GUEST_MEMFD_FLAG_MMAP alone: the memory belongs to the guest."""
    assert_has(
        probe("guest_memfd:mmap"),
        {
            **GUEST_MEMFD,
            "mmap MAP_SHARED PROT_NONE": "ok",
            "mmap MAP_SHARED PROT_READ": "ok, read SIGBUS",
            "mmap MAP_SHARED PROT_WRITE": "ok, write SIGBUS",
            "mmap MAP_PRIVATE PROT_READ": "EINVAL",
            "process_vm_readv of a mapping": "EFAULT",
        },
    )


def test_guest_memfd_that_is_shared_is_reached_by_its_mapping() -> None:
    assert_has(
        probe("guest_memfd:mmap+init_shared"),
        {
            **GUEST_MEMFD,
            "mmap MAP_SHARED PROT_READ": "ok, read zeros",
            "mmap MAP_SHARED PROT_READ past the end": "ok, read SIGBUS",
            "MADV_COLLAPSE of a mapping": "EINVAL",
            "process_vm_readv of a mapping": "ok 4096 bytes",
        },
    )


def test_a_named_file_is_as_a_nameless_one(tmp_path: Path) -> None:
    """Only a number that is different for each file may differ."""
    (tmp_path / "directory").mkdir()
    file = tmp_path / "file"
    file.touch()
    named = probe(str(file))
    other = probe(str(tmp_path / "directory"))
    # FS_IOC_GETVERSION is a number that the file system gives each file.
    differing = [name for name in ROWS if outcomes.differ(named[name], other[name])]
    assert set(differing) <= {"FS_IOC_GETVERSION"}


@pytest.mark.parametrize("name", ["memfd", "memfd_secret", "guest_memfd"])
def test_no_row_depends_on_another(name: str) -> None:
    assert probe(name, "backwards") == probe(name)


def test_a_row_that_kills_says_no_more_than_its_outcome() -> None:
    """This is so even with PYTHONFAULTHANDLER, which makes Python print a traceback."""
    program = """
from inaccfs.probe import attempts, table, targets
name = "mmap MAP_SHARED PROT_READ past the end"
row = next(row for row in table.ROWS if row.name == name)
print(attempts.attempt(targets.Memfd("memfd"), row))
"""
    ran = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        env={**os.environ, "PYTHONPATH": TOP},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (ran.stdout, ran.stderr) == ("ok, read SIGBUS\n", "")


def test_the_rows_go_at_all_that_was_asked_for() -> None:
    """The list of calls that the probe must have, by the first words of rows."""
    asked = [
        *("read", "write", "readv", "pwritev", "preadv2 RWF_NOWAIT", "splice"),
        *("sendfile", "copy_file_range", "io_uring", "AIO", "mmap MAP_SHARED"),
        *("mmap MAP_PRIVATE", "ftruncate", "truncate", "fallocate", "F_ADD_SEALS"),
        *(
            "lseek SEEK_HOLE",
            "FS_IOC_GETFLAGS",
            "execveat",
            "open /proc/self/fd O_RDWR",
        ),
        *("F_SETFL O_DIRECT", "posix_fadvise", "FS_IOC_FIEMAP", "F_SETLEASE", "flock"),
        *("F_OFD_SETLK", "process_vm_readv", "fsetxattr", "fsync", "fchmod"),
    ]

    def begins(name: str) -> Row | None:
        return next((row for row in table.ROWS if row.name.startswith(name)), None)

    assert [name for name in asked if begins(name) is None] == []
