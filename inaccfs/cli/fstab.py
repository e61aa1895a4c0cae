"""The interface to mount(8) and fstab, for the type fuse.inaccfs.

Without a mount.fuse.inaccfs, mount.fuse3(8) calls the program that the type names:
`inaccfs SPEC DIR -o OPTIONS`. A mount.fuse.inaccfs is a link to
mountscripts/mount.inaccfs, which leaves a remount to this module.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from inaccfs.cli import mountoptions, output
from inaccfs.errors import InaccfsError, OptionError
from inaccfs.fuse.mounting import FuseOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

# Options that mount.fuse3 adds itself, and those that every mount has anyway.
_IMPLIED: Final = ("dev", "suid", "exec", "nodev", "nosuid", "noexec")
# Options of mount(8) that FuseOptions drops because a new mount has them by default.
_DEFAULTS: Final = ("rw", "async", "atime", "diratime", "nolazytime")


def translated(argv: Sequence[str]) -> list[str] | None:
    """Translate the words of mount.fuse3 to `inaccfs mount`; None for other words.

    Raises:
        OptionError: SPEC cannot be mounted.
    """
    # mount(8) makes the path of the directory an absolute one.
    if len(argv) != 4 or argv[2] != "-o" or not argv[1].startswith("/"):
        return None
    spec, directory, _, words = argv
    options = [word for word in words.split(",") if word and word not in _IMPLIED]
    if "remount" in options:
        # The source is the value of fsname=.
        _remount(directory, options)
    if not _is_spec(spec):
        return None
    if spec.startswith("/"):
        if "," in spec:
            raise OptionError(
                f"{spec}: a name with a comma cannot be passed to mount: rename it"
            )
        options.append(f"backing={spec}")
    if not any(option.startswith("fsname=") for option in options):
        options.append(f"fsname={spec}")
    return ["mount", "-o", ",".join(options), directory]


def _is_spec(word: str) -> bool:
    """Whether *word* is a source, and not a command."""
    return word in ("none", "inaccfs") or word.startswith("/")


def _remount(directory: str, options: list[str]) -> None:
    """Remount by mount(8): only the kernel's own flags can be changed."""
    kept = [option for option in options if _is_flag(option)]
    for option in options:
        if option.partition("=")[0] in mountoptions.NAMES:
            output.complain(f"remount: {option} stays as it is: unmount to change it")
    flags = ",".join(["remount", "nosuid", "nodev", "noexec", *kept])
    command = ["mount", "-i", "--options-source=mtab", "-o", flags, directory]
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        raise InaccfsError(f"cannot run mount(8): {exc.strerror}") from exc


def _is_flag(option: str) -> bool:
    taken = FuseOptions()
    try:
        taken.take(option)
    except OptionError:
        return False
    return option in _DEFAULTS or bool(taken.flags)
