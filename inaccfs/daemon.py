"""The daemon: one mount, one trio loop, from the options to the last close."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyfuse3
import trio

from inaccfs import ptraced, runtime
from inaccfs.backing.private import private_tmpfs
from inaccfs.backing.wrapping import wrap
from inaccfs.control import server
from inaccfs.control.context import Actions
from inaccfs.describe import Describer
from inaccfs.fuse import descriptors, mounting
from inaccfs.fuse.channel import Channel
from inaccfs.fuse.closing import Closer
from inaccfs.fuse.files import Files
from inaccfs.fuse.handlers.writing import WritingHandlers
from inaccfs.fuse.namespace import Namespace
from inaccfs.fuse.operations import Operations
from inaccfs.fuse.ownmount import OwnMount
from inaccfs.fuse.seal import make_seal
from inaccfs.helper.process import OOM_SCORE_ADJ
from inaccfs.helper.tasks import Helper
from inaccfs.semantics.logged import with_logged_refusals
from inaccfs.shim import framesource
from inaccfs.shim.acktimeouts import AckTimeouts
from inaccfs.shim.allocator import Allocator
from inaccfs.shim.headroom import Headroom
from inaccfs.shim.superblock import Superblock

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.backing.root import Backing
    from inaccfs.config import Config
    from inaccfs.fuse.mountpoint import Mountpoint
    from inaccfs.holder import Holder
    from inaccfs.ptraced import Tracer
    from inaccfs.shim.frames import FrameSource
    from inaccfs.syscalls import OomScore
    from inaccfs.tracing.recording import Recording

log = logging.getLogger(__name__)

# Replies to READDIRPLUS wait in this socket: with more room, more can wait.
_RELAY_BUFFER_BYTES: Final = 1 << 20

# A terminal that is closed sends SIGHUP.
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(
    config: Config,
    place: Mountpoint,
    ready: Callable[[list[str]], None],
    oom_score: OomScore,
    holder: Holder | None = None,
) -> None:
    """Mount, serve until unmounted or stopped, and clean up.

    *place* is closed as soon as the mount is made. *ready* is called when the mount can
    be used, with warnings for the user. *oom_score* is that of this process. The mount
    ends when *holder* ends.

    Raises:
        InaccfsError: the mount could not be made.
    """
    # Do this first: otherwise processes of the same user could open the backing by
    # /proc.
    tracer = ptraced.hide()
    mountpoint = place.path
    control = runtime.control_path(mountpoint, config.control)
    if config.control is None:
        runtime.make_directory()
    os.umask(0)
    descriptors.raise_limit()
    stop = _StopRequest()
    with oom_score.raised(OOM_SCORE_ADJ):
        helper = Helper()
    with ExitStack() as stack:
        stack.callback(stop.ignore)
        if holder is not None:
            stack.callback(holder.clean_up)
        stack.callback(helper.close)
        recording: Recording | None = None
        if config.trace is not None:
            # Imported here because few mounts need it.
            from inaccfs.tracing import recording as recordings

            recording = recordings.Recording(config.trace, runtime.environment())
            stack.callback(recording.close)
        if config.backing is None:
            backing = private_tmpfs(
                config.tmpfs,
                fallback_name=runtime.fallback_name(mountpoint),
                flags=config.fuse.flags,
            )
        else:
            backing = wrap(config.backing)
        stack.callback(backing.close)
        source = framesource.choose(
            config.pfn_source,
            config.simulated,
            large_folios=_has_large_folios(config),
            movable=config.rules.movable,
        )
        stack.callback(source.close)
        # The daemon must not keep the directory busy in which it was started.
        os.chdir("/")
        listener = server.listen(control, everybody=bool(config.policy.allowed_uids))
        stack.callback(_remove, control)
        stack.enter_context(listener)
        with place:
            mount = mounting.mount(place, config.fuse)
        stack.callback(os.close, mount.fuse)
        own_mount = OwnMount(mount.info)
        stack.callback(own_mount.unmount)
        parts = _Parts(
            mountpoint=mountpoint,
            control=control,
            backing=backing,
            helper=helper,
            frames=source,
            mount=mount,
            own_mount=own_mount,
            tracer=tracer,
            holder=holder,
            recording=recording,
        )
        daemon = _Daemon(config, parts, stop)
        daemon.serve(listener, ready)


def _has_large_folios(config: Config) -> bool:
    """Whether files may have folios of more than a page."""
    # The options of a wrapped tmpfs are unknown: True is the safe answer.
    return config.backing is not None or config.tmpfs.huge not in (None, "never")


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


class _StopRequest:
    """Handles SIGINT and similar signals while no trio loop can receive them.

    Before the loop, a signal is remembered, so that a new mount is unmounted again.
    After the loop, they are ignored, so that nothing interrupts the unmounting.

    The daemon does not inherit ignored or blocked signals from its parent: otherwise
    nobody could end it, and it would not see the ends of its children.
    """

    def __init__(self) -> None:
        self.made = False
        for number in _STOP_SIGNALS:
            signal.signal(number, self._make)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def _make(self, _number: int, _frame: object) -> None:
        self.made = True

    def ignore(self) -> None:
        """Ignore them. Unlike handlers, this lasts until the interpreter ends."""
        for number in _STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of a mount. `run` makes them, and closes them."""

    # The path of the mountpoint.
    mountpoint: str
    # The path of the socket.
    control: str
    backing: Backing
    helper: Helper
    frames: FrameSource
    mount: mounting.NewMount
    own_mount: OwnMount
    # The process that has traced the daemon since it was started.
    tracer: Tracer | None
    # The process whose end also ends the mount.
    holder: Holder | None
    # The trace from the start, if there is one.
    recording: Recording | None


class _Daemon:
    """The parts of a mount, and how they end."""

    def __init__(self, config: Config, parts: _Parts, stop: _StopRequest) -> None:
        self._config = config
        self._parts = parts
        self._stop = stop
        backing, device = parts.backing, parts.mount.fuse
        self._closer = Closer()
        self._ack_timeouts = AckTimeouts(config.policy.ack_seconds)
        headroom = Headroom("/proc/self")
        self._superblock = Superblock(
            with_logged_refusals(config.rules),
            backing.page_size,
            allocator=Allocator(parts.helper, headroom),
            headroom=headroom,
            frames=parts.frames,
            ack_seconds=config.policy.ack_seconds,
            frees=self._closer,
            ack_timeouts=self._ack_timeouts,
        )
        self._namespace = Namespace(
            backing,
            self._superblock,
            self._closer.close,
            keeps_nodes=backing.private,
            noatime=config.fuse.noatime_directories,
        )
        self._describer = Describer(
            config,
            parts.mountpoint,
            parts.control,
            self._namespace,
            parts.frames,
            lambda: self._channel.seal,
            parts.tracer,
        )
        self._operations = Operations(self._namespace, self._describer.xattrs)
        self._relay, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._relay, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _RELAY_BUFFER_BYTES)
        # pyfuse3.close() closes it.
        self._pyfuse3_fd = theirs.detach()
        self._channel = Channel(
            device,
            self._relay,
            self._namespace,
            lambda passthrough: make_seal(
                device,
                passthrough=passthrough,
                rule=config.rules.mmap,
                page_size=backing.page_size,
            ),
            config.rules.read_errno,
            WritingHandlers(self._namespace).handlers()
            if config.rules.takes_writes
            else {},
        )
        self._nursery: trio.Nursery | None = None
        self._server: server.Server | None = None

    def serve(
        self, listener: socket.socket, ready: Callable[[list[str]], None]
    ) -> None:
        """Run the loop until the mount is unmounted or the daemon is asked to end."""
        pyfuse3.init(
            self._operations, f"/dev/fd/{self._pyfuse3_fd}", {"fsname=inaccfs"}
        )
        try:
            trio.run(self._main, listener, ready)
        finally:
            pyfuse3.close(unmount=False)
            self._relay.close()
            # No task can wait for its threads any more.
            self._closer.nursery = None
            self._namespace.close()

    async def _main(
        self, listener: socket.socket, ready: Callable[[list[str]], None]
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = self._closer.nursery = nursery
            nursery.start_soon(self._end_on_signal)
            nursery.start_soon(self._end_with_holder)
            nursery.start_soon(self._ack_timeouts.run)
            nursery.start_soon(self._parts.helper.run)
            nursery.start_soon(self._run_channel)
            nursery.start_soon(self._run_pyfuse3)
            await self._channel.initialised.wait()
            self._server = server.Server(
                listener,
                Actions(self._describer.status, lambda: self._end("quit")),
                Files(
                    self._namespace,
                    self._parts.mountpoint,
                    self._parts.mount.info.device,
                    self._parts.helper,
                ),
                self._superblock,
                self._config.policy,
                receiver=self._parts.helper,
                device=self._parts.mount.info.device,
            )
            if self._parts.recording is not None:
                self._parts.recording.start(self._server.context)
            nursery.start_soon(self._server.run)
            warnings = list(self._parts.backing.warnings)
            if not self._channel.seal.is_kept:
                warnings.append(f"mmap: {self._channel.seal}")
            if (tracer := self._parts.tracer) is not None:
                warnings.append(f"{tracer} traces this daemon: it can reach all")
            # These objects live as long as the daemon: the collector may skip them.
            gc.freeze()
            # See `inaccfs.cli.mount`.
            gc.enable()
            ready(warnings)
            # Do this late: a daemon in the background has its log only now.
            self._log_what_it_is()

    def _log_what_it_is(self) -> None:
        rules = self._config.rules
        log.info(
            "mounted: %s: %s, control socket %s",
            self._parts.mountpoint,
            self._parts.backing.description,
            self._parts.control,
        )
        log.info("rules: %s (%s)", rules.name, rules.source)
        log.info(
            "page frames: %s, pinned by %s",
            self._parts.frames.name,
            self._parts.frames.pinning,
        )
        log.info("mmap: %s", self._channel.seal)

    async def _run_channel(self) -> None:
        await self._channel.run()
        log.info("unmounted: %s", self._parts.mountpoint)
        self._parts.own_mount.lost = True
        self._end("unmounted")

    async def _run_pyfuse3(self) -> None:
        await pyfuse3.main()
        # pyfuse3 ends by itself only if it fails; then callers would hang.
        log.error("pyfuse3 has ended: ending")
        self._end("pyfuse3 has ended")

    async def _end_on_signal(self) -> None:
        with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
            if self._stop.made:
                self._end("signal")
            async for number in signals:
                self._end(signal.Signals(number).name)

    async def _end_with_holder(self) -> None:
        if self._parts.holder is not None:
            await self._parts.holder.wait()
            log.info("the process that held the mount has ended: ending")
            self._end(signal.SIGTERM.name)

    def _end(self, reason: str) -> None:
        log.info("ending: %s", reason)
        assert self._nursery is not None
        if self._server is not None:
            self._server.shut_down(reason)
        self._nursery.cancel_scope.cancel()
