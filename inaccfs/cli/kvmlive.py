"""inaccfs kvm live: the emulated machine whose KVM has private memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inaccfs.cli import output

if TYPE_CHECKING:
    import argparse

_BUILD = """\
Build the kernel for inaccfs kvm probe --against emulated: Debian's linux-source-6.12,
with a KVM that has private memory without special hardware, and the kernel's own tests
of it. It takes some 10 minutes of two CPUs and 2 GB, and leaves 15 MB in the cache,
$XDG_CACHE_HOME/inaccfs. A build that was interrupted goes on where it was.
INACCFS_LINUX_SOURCE names another source package.
"""


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand, and its own."""
    parser = commands.add_parser(
        "live",
        help="build the kernel of the emulated machine",
        description="The emulated machine, whose KVM has private memory.",
    )
    own = parser.add_subparsers(metavar="COMMAND", required=True)
    build = own.add_parser("build", help="build its kernel, once", description=_BUILD)
    build.set_defaults(run=_build, parser=build)


def _build(_args: argparse.Namespace) -> int:
    """Build the kernel; print its path."""
    from inaccfs.kvm.live import kernel

    built = kernel.build(output.mention)
    output.say(str(built.image))
    return 0
