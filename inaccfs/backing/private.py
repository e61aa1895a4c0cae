"""A tmpfs that belongs to the daemon alone."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NoReturn

from inaccfs import mountcalls
from inaccfs.backing.fallback import directory_on_tmpfs
from inaccfs.backing.root import Backing, open_root
from inaccfs.errors import BackingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inaccfs.backing.options import TmpfsOptions


def private_tmpfs(
    options: TmpfsOptions, *, fallback_name: str, flags: int = 0
) -> Backing:
    """Mount a tmpfs that no path leads to.

    Root mounts it detached; other users do so in a user namespace (`usertmpfs`). If
    user namespaces are not allowed, the backing is a directory of mode 0700 on another
    tmpfs (`fallback`), called *fallback_name* and the pid, with a warning. Of *flags*,
    MS_* as for mount(2), the tmpfs gets those that concern access times.

    Raises:
        BackingError: the kernel refused the options, or every one of these ways.
    """
    wanted = {"mode": "0700", **options.as_mount_options()}
    try:
        if os.geteuid() == 0:
            mount = mountcalls.detached_tmpfs(wanted, flags)
        else:
            # Root does not need it.
            from inaccfs.backing.usertmpfs import detached_in_user_namespace

            mount = detached_in_user_namespace(wanted, flags)
    except mountcalls.FsConfigError as exc:
        raise BackingError(f"the tmpfs refused {exc.filename}: {exc.strerror}") from exc
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            _refuse_options(wanted)
        if os.geteuid() == 0:
            raise BackingError(
                f"no private tmpfs: {exc.strerror}; it needs CAP_SYS_ADMIN and Linux "
                "5.2 (or name a directory with --backing)"
            ) from exc
        return directory_on_tmpfs(options, fallback_name, exc)
    try:
        # The fd of fsmount(2) is O_PATH, which cannot be listed.
        root = open_root(".", dir_fd=mount)
    finally:
        os.close(mount)
    return Backing.of(root, "tmpfs", None)


def _refuse_options(wanted: Mapping[str, str]) -> NoReturn:
    given = ",".join(f"{key}={value}" for key, value in wanted.items())
    raise BackingError(
        f"the kernel refused a tmpfs with {given}: check the values (huge= needs a "
        "kernel with transparent huge pages)"
    )
