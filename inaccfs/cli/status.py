"""inaccfs status: show mounts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

from inaccfs import launch
from inaccfs.errors import InaccfsError
from inaccfs.fuse import mounting

if TYPE_CHECKING:
    import argparse

    from inaccfs.status import Status


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "status",
        help="show mounts",
        description="Show one mount, or all: backing, size, files, allocated pages, "
        "the rules, whether mmap is sealed, the daemon and its control socket.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show what there is; status 1 if some mount did not answer."""
    if args.mountpoint is not None:
        paths = [mounting.find(args.mountpoint).path]
    else:
        paths = list(dict.fromkeys(mounted.path for mounted in mounting.mounts()))
    found: list[Status] = []
    failed = False
    for path in paths:
        try:
            found.append(launch.read_status(path))
        except InaccfsError as exc:
            failed = True
            print(f"inaccfs: {exc}", file=sys.stderr)
    if args.json:
        if args.mountpoint is None:
            print(msgspec.json.encode(found).decode())
        elif found:
            print(msgspec.json.encode(found[0]).decode())
    elif found:
        print("\n\n".join(map(_describe, found)))
    elif not failed:
        print("no inaccfs mounts")
    return int(failed)


def _describe(status: Status) -> str:
    size = _bytes(status.size) if status.size else "no limit"
    lines = {
        "backing": status.backing,
        "size": size,
        "files": str(status.files),
        "allocated": f"{status.allocated_pages} pages of {_bytes(status.page_size)}",
        "semantics": status.semantics,
        "mmap": status.mmap,
        "pfns": _frames(status),
        "pid": str(status.pid),
        "control": status.control or "none",
        "log": status.log or "standard error",
    }
    if status.tracer is not None:
        lines["traced by"] = f"{status.tracer}, since it was started"
    return "\n".join(
        [status.mountpoint, *(f"  {name:<10} {text}" for name, text in lines.items())]
    )


def _frames(status: Status) -> str:
    if status.pfn_source == status.pinning:
        return status.pfn_source
    return f"{status.pfn_source}, pinned by {status.pinning}"


def _bytes(count: int) -> str:
    """A size for people: exact if it can be told in a few digits."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:g} {unit}" if size.is_integer() else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
