"""inaccfs mount: make a mount, in the background or in the foreground."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from inaccfs import runtime, syscalls
from inaccfs.backing.options import HUGE_CHOICES
from inaccfs.cli import logfile, mountoptions, output, units
from inaccfs.errors import DaemonFailedError, MountError, OptionError
from inaccfs.fuse import finding
from inaccfs.fuse.mountpoint import Mountpoint
from inaccfs.holder import Holder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inaccfs.config import Config

log_ = logging.getLogger(__name__)

_HANDED: Final = ("ready", "mountpoint", "holder")
"""The NAMEs of the options --NAME-fd, with which `launch.start_daemon` passes fds."""


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "mount",
        help="mount a file system of inaccessible files",
        description="Mount a file system whose files can be sized once, allocated and "
        "punched, but never read, written or mapped. Without --backing the memory is "
        "in a private tmpfs that no path reaches.",
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument(
        "--backing", metavar="DIR", help="wrap this directory of a tmpfs or hugetlbfs"
    )
    parser.add_argument("--size", help="size of the private tmpfs: 512m, 1g, 50%%")
    parser.add_argument("--huge", metavar="|".join(HUGE_CHOICES))
    parser.add_argument(
        "--mode", help="mode of the root directory, in octal (default 0700)"
    )
    parser.add_argument("--uid", help="owner of the root directory")
    parser.add_argument("--gid", help="group of the root directory")
    parser.add_argument(
        "--allow-other", action="store_true", help="allow other users access, too"
    )
    parser.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="OPT[,OPT...]",
        help="mount options: those above as size=1g, and allow_other, fsname=NAME, "
        "max_read=N, context=, ro, noatime and the like",
    )
    parser.add_argument(
        "--semantics",
        metavar="NAME|FILE.py:CLASS",
        help="the rules: those of a version (inaccfs semantics lists them; default "
        "v8), or your own",
    )
    parser.add_argument(
        "--control",
        metavar="PATH",
        help="the control socket (default: in /run/inaccfs "
        "or $XDG_RUNTIME_DIR/inaccfs)",
    )
    parser.add_argument(
        "--allow-uid",
        action="append",
        default=[],
        metavar="UID",
        help="let this user use the control socket, too",
    )
    parser.add_argument(
        "--ack-timeout",
        metavar="SECONDS",
        help="how long a peer may leave an event unanswered (default 10)",
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=N",
        help="a limit of the control socket: message, peers, fdnames, notifiers, "
        "pages, output",
    )
    parser.add_argument(
        "--no-guest-access",
        action="store_true",
        help="refuse get-memory, which gives a peer the backing memory",
    )
    parser.add_argument(
        "--pfn-source",
        metavar="|".join(mountoptions.PFN_SOURCES),
        help="real page frame numbers, or made up ones (default: real if possible)",
    )
    parser.add_argument(
        "--simulated-memory",
        metavar="SIZE",
        help="how much simulated memory there is (default 64g)",
    )
    parser.add_argument(
        "--simulated-order", metavar="N", help="order of the largest folio (default 9)"
    )
    parser.add_argument(
        "--simulated-fragmentation",
        metavar="PERCENT",
        help="how much of that memory is in use from the start, at scattered places",
    )
    parser.add_argument(
        "--log", metavar="FILE", help="the log of a daemon in the background"
    )
    parser.add_argument(
        "--trace",
        metavar="FILE.json",
        help="record what happens from the start, as inaccfs trace -o does",
    )
    parser.add_argument(
        "--foreground",
        action="store_true",
        help="stay in the foreground, and log to standard error",
    )
    # Options from `launch.start_daemon`: the pipe for `runtime.READY`, an fd of the
    # mountpoint, a pidfd of the process that holds the mount, and the directory to
    # remove with the mount.
    for name in _HANDED:
        parser.add_argument(
            f"--{name}-fd", type=units.fd_of, metavar="N", help=argparse.SUPPRESS
        )
    parser.add_argument("--scratch", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="log normal events, too; -vv: also each call that a rule refuses",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Mount; with --foreground, be the daemon."""
    config = mountoptions.parse(mountoptions.gather(args))
    if args.foreground:
        return _serve(args, config)
    for name in _HANDED:
        if getattr(args, f"{name}_fd") is not None:
            raise OptionError(f"--{name}-fd is for a daemon: give --foreground, too")
    with Mountpoint.open(args.mountpoint) as mountpoint:
        return _start(args.given, config, mountpoint)


def _start(words: Sequence[str], config: Config, mountpoint: Mountpoint) -> int:
    """Start a daemon in the background, and give it the user's own *words*."""
    runtime.control_path(mountpoint.path, config.control)
    if config.log is None:
        runtime.make_directory()
        words = ["--log", runtime.log_path(mountpoint.path), *words]
    # Imported here because a daemon does not start daemons.
    from inaccfs import launch

    try:
        daemon = launch.start_daemon(words, mountpoint)
    except DaemonFailedError as exc:
        if not exc.status:
            raise
        # The daemon has printed the reason on our standard error.
        return exc.status
    # It stays. Popen would warn of that (python -X dev).
    daemon.returncode = 0
    return 0


def _serve(args: argparse.Namespace, config: Config) -> int:
    """Be the daemon."""
    oom_score = syscalls.OomScore()
    # Do this before the imports, which take most of the start time: see `ptraced`.
    syscalls.set_dumpable(False)
    if args.holder_fd is not None:
        # A daemon that is stopped would not notice that its holder has ended.
        syscalls.die_with_parent(signal.SIGCONT)
    # Starting leaves little garbage, and looking for it would take 4 % of the time. The
    # daemon enables it when it is ready.
    gc.disable()
    # Imported here because only the daemon needs trio and pyfuse3.
    from inaccfs import daemon

    # Load a user's class while the standard error is still the user's terminal.
    _ = config.rules
    for name in _HANDED:
        fd = getattr(args, f"{name}_fd")
        try:
            if fd is not None:
                os.fstat(fd)
        except (OSError, OverflowError):
            raise OptionError(
                f"--{name}-fd {fd}: no such fd: give an open one"
            ) from None
    if args.mountpoint_fd is None:
        mountpoint = Mountpoint.open(args.mountpoint)
    else:
        path = finding.resolve(args.mountpoint)
        mountpoint = Mountpoint(path, args.mountpoint_fd)
    holder = None if args.holder_fd is None else Holder(args.holder_fd, args.scratch)
    logfile.start(args.verbose)

    own_log = None if config.log is None else logfile.LogFile(config.log)

    def ready(warnings: list[str]) -> None:
        for warning in warnings:
            output.complain(f"warning: {warning}")
        if own_log is not None:
            own_log.take_output()
        if args.ready_fd is not None:
            _tell_ready(args.ready_fd)
        _notify_systemd()

    try:
        daemon.run(config, mountpoint, ready, oom_score, holder)
    except BaseException as exc:
        if own_log is not None and own_log.is_taken:
            # Log it here: at the interpreter's end the empty log would be removed
            # already.
            log_.critical("the daemon ends: this is a bug", exc_info=True)
            return 1
        if isinstance(exc, OptionError):
            # The options are valid, but this machine lacks something: status 1.
            raise MountError(str(exc)) from exc
        raise
    finally:
        if own_log is not None:
            own_log.remove_if_empty()
    return 0


def _tell_ready(fd: int) -> None:
    """Tell the process that has started the daemon that the mount is ready."""
    try:
        os.write(fd, runtime.READY)
    except BrokenPipeError:
        # That process was interrupted, and does not need the mount any more.
        signal.raise_signal(signal.SIGTERM)
    os.close(fd)


def _notify_systemd() -> None:
    """Tell a service manager that the mount is ready. See sd_notify(3)."""
    address = os.environ.pop("NOTIFY_SOCKET", None)
    if not address:
        return
    # An abstract address is written with @ for its NUL.
    target = "\0" + address[1:] if address.startswith("@") else address
    # "Errors should be ignored", says the manual page: there may be no listener.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.sendto(b"READY=1\n", target)
