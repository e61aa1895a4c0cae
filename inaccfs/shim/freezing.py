"""Frozen files: kvm_gmem_freeze() of the live update series.

A frozen file gets no new page and loses none: fallocate(2) and everything that would
fill a hole is EPERM. Present pages can be fetched and written to. Conversions, which
the series does not mention, are EPERM, too.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from inaccfs.errnos import EHWPOISON, os_error

if TYPE_CHECKING:
    from collections.abc import Hashable

    from inaccfs.semantics.rules import Check
    from inaccfs.shim.filestate import FileState


async def freeze(file: FileState, holder: Hashable, who: int = 0) -> None:
    """Freeze a file for *holder*, and wait for the calls that run already.

    *who* is the peer's number, for traces.

    Raises:
        OSError: EOPNOTSUPP in semantics without; EINVAL for a file without a size;
            EBUSY, *holder* has frozen it; EPERM, another has; EHWPOISON, a page is
            poisoned, and the file is not frozen then.
    """
    with file.trace.command("freeze", 0, file.count, who):
        await _freeze(file, holder)


async def _freeze(file: FileState, holder: Hashable) -> None:
    _check_rule(file)
    if file.frozen_by is not None:
        if file.frozen_by is holder:
            raise OSError(errno.EBUSY, "it is frozen already")
        raise OSError(errno.EPERM, "another peer has frozen it")
    if not file.size:
        raise OSError(errno.EINVAL, "the file has no size yet")
    _set(file, holder)
    try:
        await file.notifiers.idle()
        await file.turn.wait()
    except BaseException:
        release(file, holder)
        raise
    if file.pages.poisoned:
        release(file, holder)
        raise OSError(EHWPOISON, "a page is poisoned: punch it first")


def unfreeze(file: FileState, holder: Hashable, who: int = 0) -> None:
    """Undo `freeze`.

    Raises:
        OSError: EOPNOTSUPP in semantics without; EINVAL, it is not frozen; EPERM,
            another has frozen it.
    """
    with file.trace.command("unfreeze", 0, file.count, who):
        _check_rule(file)
        if file.frozen_by is None:
            raise OSError(errno.EINVAL, "it is not frozen")
        if file.frozen_by is not holder:
            raise OSError(errno.EPERM, "another peer has frozen it")
        release(file, holder)


def release(file: FileState, holder: Hashable) -> None:
    """*holder* has disconnected, or unfreezes the file."""
    if file.frozen_by is holder:
        _set(file, None)


def _check_rule(file: FileState) -> None:
    if not file.superblock.semantics.has_freeze:
        raise OSError(
            errno.EOPNOTSUPP, "no file is frozen in these semantics (query-semantics)"
        )


def _set(file: FileState, holder: Hashable | None) -> None:
    rules = file.superblock.semantics
    check = rules.check_fallocate
    if holder is not None:
        first = rules.frozen == "before the checks"
        check = partial(_refuse, None if first else check)
    file.set_frozen(holder, check)


def _refuse(check: Check | None, *arguments: int) -> None:
    """`Semantics.check_fallocate` of a frozen file."""
    if check is not None:
        check(*arguments)
    raise os_error(errno.EPERM)
