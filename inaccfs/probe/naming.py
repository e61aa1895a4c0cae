"""Finds the target that a user has named; errors for what cannot be probed."""

from __future__ import annotations

import json
import mmap
import os
import stat
from typing import TYPE_CHECKING, Final

from inaccfs.kvmcalls import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP
from inaccfs.probe import children
from inaccfs.probe.targets import (
    Directory,
    GivenFile,
    GuestMemfd,
    Memfd,
    MemfdSecret,
    ProbeError,
    Target,
    nameless_file,
    no_answer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_FLAGS: Final = {
    "mmap": GUEST_MEMFD_FLAG_MMAP,
    "init_shared": GUEST_MEMFD_FLAG_INIT_SHARED,
}

NAMES: Final = ("memfd", "memfd_secret", "guest_memfd")
"""The targets that are not files with a name."""


def find(text: str, *, force: bool = False) -> Target:
    """The target called *text*; with *force* it may be a file that is not empty.

    Raises:
        ProbeError: there is none, or it must not be used. Says what to do.
    """
    kind, _, flags = text.partition(":")
    if kind in NAMES:
        target = _anonymous(text, kind, flags)
        _ask_child(text, lambda: _trial(target))
        return target
    found = json.loads(_ask_child(text, lambda: _look_at(text)))
    if found["directory"]:
        return Directory(text, found["unit"])
    if found["size"] and not force:
        raise ProbeError(
            f"{text} has {found['size']} bytes, and would lose them: name an empty "
            "file or a directory, or use --force"
        )
    return GivenFile(text, found["unit"])


def _anonymous(text: str, kind: str, flags: str) -> Target:
    if kind == "guest_memfd":
        bits = 0
        for flag in filter(None, flags.split("+")):
            if flag not in _FLAGS:
                raise ProbeError(
                    f"{text}: no flag {flag!r} of guest_memfd: {', '.join(_FLAGS)}"
                )
            bits |= _FLAGS[flag]
        return GuestMemfd(text, bits)
    if flags:
        raise ProbeError(f"{text}: {kind} has no flags; a file is ./{text}")
    return Memfd(text) if kind == "memfd" else MemfdSecret(text)


def _ask_child(text: str, question: Callable[[], str]) -> str:
    """Answer *question* in a child, as the file system may hang."""

    def work(_say: children.Say) -> str:
        try:
            return f"ok {question()}"
        except ProbeError as exc:
            return str(exc)
        except OSError as exc:
            return f"{text}: cannot make a file: {exc.strerror}"

    ending = children.run(work)
    if ending.result is None:
        raise no_answer(text, ending)
    good, _, answer = ending.result.partition(" ")
    if good != "ok":
        raise ProbeError(ending.result)
    return answer


def _trial(target: Target) -> str:
    target.make()
    return ""


def _look_at(path: str) -> str:
    """Open *path*, to see whether it can be used; its properties as JSON."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ProbeError(
            f"{path} does not exist: name an empty file, a directory to make files in, "
            f"or one of {', '.join(NAMES)}, guest_memfd:mmap"
        ) from None
    except OSError as exc:
        raise ProbeError(f"cannot look at {path}: {exc.strerror}") from exc
    if stat.S_ISDIR(mode):
        fd = nameless_file(path)
    elif stat.S_ISREG(mode):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as exc:
            raise ProbeError(
                f"cannot open {path} for reading and writing: {exc.strerror}"
            ) from exc
    else:
        raise ProbeError(f"{path} is neither a regular file nor a directory")
    found = os.fstat(fd)
    return json.dumps(
        {
            "directory": stat.S_ISDIR(mode),
            "size": found.st_size,
            # f_bsize is the huge page size of a hugetlbfs, whose sizes are multiples of
            # it. st_blksize is 2 MiB also on a tmpfs with huge=always.
            "unit": max(os.fstatvfs(fd).f_bsize, mmap.PAGESIZE),
        }
    )
