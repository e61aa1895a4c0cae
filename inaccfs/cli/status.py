"""inaccfs status: show mounts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inaccfs import launch
from inaccfs.cli import output
from inaccfs.cli.units import size_text
from inaccfs.errors import InaccfsError, NoEntryError, NotMountedError
from inaccfs.fuse import finding
from inaccfs.status import encode
from inaccfs.streams import printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from inaccfs.status import Status


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "status",
        help="show mounts",
        description="Show one mount, or all: backing, size, files, allocated pages, "
        "the rules, whether mmap is sealed, the daemon and its control socket. A mount "
        "of another user is shown as one line that says so.",
        epilog="exit status: 0; 1 if the daemon of a mount is dead or does not answer",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show mounts; status 1 if the daemon of one did not answer."""
    if args.mountpoint is not None:
        found = launch.read_status(args.mountpoint)
        if args.json:
            output.say_json(encode(found))
        else:
            output.say(describe(found))
        return 0
    answers = list(_ask_all())
    statuses = [answer for answer in answers if not isinstance(answer, _Silent)]
    silent = [answer for answer in answers if isinstance(answer, _Silent)]
    for one in silent:
        if one.failed or args.json:
            output.complain(one.reason)
    if args.json:
        output.say_json(encode(statuses))
    elif shown := [describe(one) for one in answers if not _is_failed(one)]:
        output.say("\n\n".join(shown))
    elif not silent:
        output.say("no inaccfs mounts")
    return int(any(one.failed for one in silent))


@dataclass(frozen=True, slots=True)
class _Silent:
    """A mount whose status is not available."""

    mountpoint: str
    reason: str
    # Whether the user should do something about it.
    failed: bool


def _is_failed(answer: Status | _Silent) -> bool:
    return isinstance(answer, _Silent) and answer.failed


def _ask_all() -> Iterator[Status | _Silent]:
    """All mounts, except those that are unmounted meanwhile."""
    asked = {mounted.path: mounted for mounted in finding.mounts()}
    for path, mounted in asked.items():
        try:
            yield launch.read_status(path)
        except InaccfsError as exc:
            if mounted not in finding.mounts():
                continue
            if isinstance(exc, NoEntryError):
                reason = str(exc)
            elif type(exc) is NotMountedError:
                reason = f"{path}: another mount covers it"
            else:
                yield _Silent(path, str(exc), failed=True)
                continue
            yield _Silent(path, reason, failed=False)


def describe(status: Status | _Silent) -> str:
    if isinstance(status, _Silent):
        # The message begins with the path.
        return printable(status.reason)
    size = size_text(status.size) if status.size else "no limit"
    lines = {
        "backing": status.backing,
        "size": size,
        "files": str(status.files),
        "allocated": f"{status.allocated_pages} pages of {size_text(status.page_size)}",
        "semantics": status.semantics,
        "mmap": status.mmap,
        "pfns": _frames(status),
        "pid": str(status.pid),
        "control": status.control,
        "log": status.log or "standard error",
    }
    if status.tracer is not None:
        lines["traced by"] = f"{status.tracer}, since it was started"
    rows = [f"  {name:<10} {printable(text)}" for name, text in lines.items()]
    return "\n".join([printable(status.mountpoint), *rows])


def _frames(status: Status) -> str:
    if status.pfn_source == status.pinning:
        return status.pfn_source
    return f"{status.pfn_source}, pinned by {status.pinning}"
