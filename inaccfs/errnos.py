"""Names of errnos, also of those that Python lacks or names differently."""

from __future__ import annotations

import errno
import os
from typing import Final, TypeGuard

# include/uapi/asm-generic/errno.h; Python knows it from 3.14 on.
EHWPOISON: Final = 133

NAMES: Final[dict[int, str]] = {
    **errno.errorcode,
    # A number with two names; system calls mean this one.
    errno.EOPNOTSUPP: "EOPNOTSUPP",
    EHWPOISON: "EHWPOISON",
}

NUMBERS: Final[dict[str, int]] = {
    **{name: number for number, name in errno.errorcode.items()},
    **{name: number for number, name in NAMES.items()},
}

# What the kernel accepts in a reply: fuse_dev_do_write() of fs/fuse/dev.c.
_POSSIBLE: Final = range(1, 512)


def name(number: int | None) -> str:
    """The name of an errno, such as EINVAL; "errno 530" if it has none."""
    return NAMES.get(number or 0, f"errno {number}")


def os_error(number: int) -> OSError:
    """The `OSError` of an errno, with the C library's text."""
    return OSError(number, os.strerror(number))


def is_errno(number: object) -> TypeGuard[int]:
    """Whether a system call can fail with *number*. 22.0 is not an errno."""
    return type(number) is int and number in _POSSIBLE
