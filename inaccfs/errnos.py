"""Names of errnos, those that Python lacks or calls otherwise included."""

from __future__ import annotations

import errno
from typing import Final

# include/uapi/asm-generic/errno.h; Python knows it from 3.14 on.
EHWPOISON: Final = 133

NAMES: Final[dict[int, str]] = {
    **errno.errorcode,
    # One number with two names, of which system calls mean this one.
    errno.EOPNOTSUPP: "EOPNOTSUPP",
    EHWPOISON: "EHWPOISON",
}

NUMBERS: Final[dict[str, int]] = {
    **{name: number for number, name in errno.errorcode.items()},
    **{name: number for number, name in NAMES.items()},
}
