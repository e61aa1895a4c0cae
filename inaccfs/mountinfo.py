"""All mounts, from /proc/self/mountinfo, without a request to any file system."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class MountInfo(NamedTuple):
    """A line of mountinfo. See proc(5)."""

    # "major:minor" of the file system.
    device: str
    path: str
    fstype: str
    # The numbers of the mount, and of the mount that it is on. The kernel reuses the
    # number of an unmounted one.
    number: int
    parent: int
    # The options of the file system, with commas between them.
    options: str

    def option(self, name: str) -> str:
        """The value of an option of the file system; empty if there is none."""
        for option in self.options.split(","):
            found, _, value = option.partition("=")
            if found == name:
                return value
        return ""


def read() -> list[MountInfo]:
    """All mounts that this process can see; of several at one place the last counts."""
    with open("/proc/self/mountinfo", "rb") as lines:
        return [_parse(line) for line in lines]


def topmost(path: str) -> MountInfo | None:
    """The mount exactly at *path* that covers all others there."""
    found = [mount for mount in read() if mount.path == path]
    return found[-1] if found else None


def below(path: str) -> list[str]:
    """The mountpoints at *path* or below it, of all mounts."""
    prefix = path.rstrip("/") + "/"
    return [
        mount.path
        for mount in read()
        if mount.path == path or mount.path.startswith(prefix)
    ]


def _parse(line: bytes) -> MountInfo:
    fields, _, rest = line.partition(b" - ")
    number, parent, device, _, path, *_ = fields.split()
    # The source between them may be empty.
    fstype, _, rest = rest.partition(b" ")
    return MountInfo(
        device.decode(),
        _unescape(path),
        os.fsdecode(fstype),
        int(number),
        int(parent),
        os.fsdecode(rest.split()[-1]),
    )


def _unescape(text: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), text))
