"""Which files there are, and where the system looks for each."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE: Final = Path(__file__).parent

SHARE: Final = HERE / "share"
"""Man pages and completions, as they lie below a prefix's share/."""

# What the unit and the helper have in place of the command's path; see both files.
_UNITS_COMMAND: Final = "/usr/local/bin/inaccfs"
_HELPERS_COMMAND: Final = "inaccfs=''"

# mount(8) looks for helpers in /sbin only. A system whose /sbin is a link to usr/sbin
# wants its packages to write to the latter.
_SBIN: Final = {Path("/usr"): Path("/usr/sbin"), Path("/usr/local"): Path("/sbin")}

# Without XDG_DATA_DIRS, which only desktops set, fish does not look below /usr/local.
_FISH: Final = Path("fish/vendor_completions.d/inaccfs.fish")
_ETC_FISH: Final = {Path("/usr/local"): Path("/etc/fish/completions/inaccfs.fish")}


@dataclass(frozen=True, slots=True)
class File:
    """A file to install: its path, without --root, its content and its mode."""

    path: Path
    content: bytes
    mode: int = 0o644


def files(prefix: Path, command: str) -> Iterator[File]:
    """All files for *prefix*, an absolute path; *command* is the inaccfs they run."""
    sbin = _SBIN.get(prefix, prefix / "sbin")
    text = (HERE / "mount.inaccfs").read_text()
    helper = text.replace(
        _HELPERS_COMMAND, f"inaccfs={shlex.quote(command)}", 1
    ).encode()
    for name in ("mount.inaccfs", "mount.fuse.inaccfs"):
        yield File(sbin / name, helper, 0o755)
    unit = (HERE / "inaccfs@.service").read_text()
    yield File(
        prefix / "lib/systemd/system/inaccfs@.service",
        unit.replace(_UNITS_COMMAND, _for_systemd(command)).encode(),
    )
    for path in sorted(SHARE.rglob("*")):
        if path.is_file():
            below = path.relative_to(SHARE)
            place = prefix / "share" / below
            if below == _FISH:
                place = _ETC_FISH.get(prefix, place)
            yield File(place, path.read_bytes())


def _for_systemd(command: str) -> str:
    """*command* as a word of ExecStart=; systemd.syntax(7), systemd.unit(5)."""
    escaped = command.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    escaped = escaped.replace("$", "$$")
    return f'"{escaped}"' if any(char in " \t'\"\\;" for char in escaped) else escaped
