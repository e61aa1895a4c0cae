"""inaccfs report: all that a bug report needs, in one text."""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING, Any, Final

from inaccfs import doctor, launch
from inaccfs._version import __version__
from inaccfs.cli import output, status
from inaccfs.cli.doctor import as_text
from inaccfs.errors import InaccfsError
from inaccfs.fuse import finding

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

# The length of the part of a log's end that is shown.
_LOG_BYTES: Final = 32 << 10


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "report",
        help="print what a bug report should contain",
        description="Print the version, the kernel, what inaccfs doctor finds, and "
        "the status and the end of the log of each mount, or of "
        "MOUNTPOINT only. Read the report before you send it: it has "
        "names of files and processes. The command changes nothing.",
        epilog="exit status: 0, also if a mount does not answer; 1 if there is none at "
        "MOUNTPOINT",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report, part by part."""
    if args.mountpoint is None:
        paths = list(dict.fromkeys(mount.path for mount in finding.mounts()))
    else:
        paths = [finding.find(args.mountpoint).path]
    for title, text in _parts(paths):
        output.say(f"## {title}\n\n{text}\n")
    return 0


def _parts(paths: list[str]) -> Iterator[tuple[str, str]]:
    yield "versions", _versions()
    yield "inaccfs doctor", as_text(doctor.examine())
    for path in paths:
        try:
            found = launch.read_status(path)
        except InaccfsError as exc:
            # This error may be what the report is about.
            yield f"mount {path}", str(exc)
            continue
        yield f"mount {path}", status.describe(found)
        if found.log is not None:
            yield f"log {found.log}", _tail(found.log)
    if not paths:
        yield "mounts", "none"


def _versions() -> str:
    try:
        system = platform.freedesktop_os_release()
    except OSError:
        system = {}
    lines = {
        "inaccfs": f"{__version__}, in {os.path.dirname(doctor.__file__)}",
        "Python": f"{platform.python_version()}, {sys.executable}",
        "system": system.get("PRETTY_NAME", "unknown"),
        "kernel": " ".join(os.uname()[2:]),
        "user": f"uid {os.geteuid()}",
        "locale": os.environ.get("LC_ALL") or os.environ.get("LANG") or "C",
    }
    return "\n".join(f"{name:<8}  {text}" for name, text in lines.items())


def _tail(path: str) -> str:
    """The end of a log."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _LOG_BYTES, 0))
            text = file.read().decode(errors="surrogateescape")
    except FileNotFoundError:
        return "none: nothing has been logged"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    if size <= _LOG_BYTES:
        return text.rstrip("\n") or "empty"
    return "...\n" + text.partition("\n")[2].rstrip("\n")
