"""inaccfs top: the activity of a mount, redrawn every second."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args

from inaccfs.cli import terminal
from inaccfs.errors import InaccfsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from rich.console import ScreenContext

    from inaccfs.cli.terminal import Ending
    from inaccfs.client import Client
    from inaccfs.client.tracing import Trace
    from inaccfs.control.messages import NotifierInfo, Stats
    from inaccfs.status import Status

_AGAIN_SECONDS: Final = 1.0


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "top",
        help="show what a mount is doing",
        description="Show requests a second by kind and how long they take, refused "
        "requests and their callers, invalidations in flight and the "
        "peers that they wait for, peers, notifiers and frames. The "
        "display changes every second; q ends it. It needs a trace, so it "
        "is for root and the mount's owner.",
        epilog="exit status: 0, also after q and Ctrl-C; 1 if the mount does not "
        "answer, or the output is no terminal",
    )
    parser.add_argument(
        "mountpoint",
        metavar="MOUNTPOINT",
        nargs="?",
        help="may be left out if there is only one mount",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draw until the user or the daemon ends it."""
    if not (terminal.is_terminal() and sys.stdin.isatty()):
        raise InaccfsError(
            "inaccfs top needs a terminal: inaccfs metrics and inaccfs trace do not"
        )
    # Imported here because it takes a while.
    from rich.console import Console

    from inaccfs import client
    from inaccfs.cli.terminal import Ending
    from inaccfs.shim.trace import What

    path = args.mountpoint or _the_only_mount()
    with ExitStack() as stack:
        shim = stack.enter_context(client.connect(path))
        try:
            trace = stack.enter_context(shim.trace(*get_args(What)))
        except PermissionError:
            raise InaccfsError(
                f"{path}: only root and the mount's owner may look at it by top"
            ) from None
        ending = stack.enter_context(Ending())
        stack.enter_context(_keys())
        console = Console(highlight=False, emoji=False, markup=False)
        screen = stack.enter_context(console.screen())
        _Loop(screen, shim, trace).run(ending)
    return 0


def _the_only_mount() -> str:
    from inaccfs.fuse import finding

    paths = list(dict.fromkeys(mount.path for mount in finding.mounts()))
    if not paths:
        raise InaccfsError("no inaccfs mounts")
    if len(paths) > 1:
        raise InaccfsError(f"there are several mounts, name one: {', '.join(paths)}")
    return paths[0]


@contextmanager
def _keys() -> Iterator[None]:
    """In a with block, keys are read one by one, and are not echoed."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Snapshot(NamedTuple):
    """The answers of a mount at one moment."""

    status: Status
    stats: Stats
    # The notifiers that have not answered an event.
    waiting: list[NotifierInfo]
    # The time of the answers: time.monotonic().
    time: float


class _Asker:
    """Asks a mount in a separate thread, because a stopped mount never answers."""

    def __init__(self, shim: Client) -> None:
        self._shim: Final = shim
        self.last = self._ask()
        self.error: InaccfsError | None = None
        self._wanted: Final = threading.Event()
        threading.Thread(target=self._run, name="inaccfs top", daemon=True).start()

    def ask(self) -> None:
        """Ask once more. `last` will have the answer."""
        self._wanted.set()

    def _run(self) -> None:
        while self.error is None:
            self._wanted.wait()
            self._wanted.clear()
            try:
                self.last = self._ask()
            except InaccfsError as exc:
                self.error = exc

    def _ask(self) -> _Snapshot:
        shim = self._shim
        status, stats = shim.query_status(), shim.query_stats()
        waiting = [one for one in shim.query_notifiers() if one.waiting is not None]
        return _Snapshot(status, stats, waiting, time.monotonic())


class _Loop:
    """Draws every second, and when the size of the terminal changes."""

    def __init__(self, screen: ScreenContext, shim: Client, trace: Trace) -> None:
        from rich.console import ConsoleDimensions
        from rich.control import Control

        from inaccfs.cli import topview
        from inaccfs.tracing.rates import Rates

        self._view: Final = topview.View
        self._screen: Final = screen
        self._home: Final = Control.home()
        self._dimensions: Final = ConsoleDimensions
        self._asker: Final = _Asker(shim)
        self._trace: Final = trace
        self._rates: Final = Rates()

    def run(self, ending: Ending) -> None:
        """Return when the user or the daemon has ended it.

        Raises:
            InaccfsError: the daemon was killed, or has hung up.
        """
        resized, resize = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.signal(signal.SIGWINCH, lambda *_: _notify(resize))
        poller = select.poll()
        for file in (self._trace, ending, sys.stdin, resized):
            poller.register(file, select.POLLIN)
        try:
            due = 0.0
            while not ending.asked and not self._trace.over:
                if (left := due - time.monotonic()) <= 0:
                    self._draw()
                    self._asker.ask()
                    due = time.monotonic() + _AGAIN_SECONDS
                    continue
                ready = {fd for fd, _ in poller.poll(left * 1000)}
                if self._trace.fileno() in ready:
                    self._rates.add(self._trace.read(0))
                if resized in ready:
                    os.read(resized, 512)
                    self._draw()
                if sys.stdin.fileno() in ready:
                    keys = os.read(sys.stdin.fileno(), 64)
                    # The terminal was closed, or the user wants to quit.
                    if not keys or b"q" in keys.lower():
                        return
        finally:
            signal.signal(signal.SIGWINCH, before)
            os.close(resized)
            os.close(resize)

    def _draw(self) -> None:
        if self._asker.error is not None:
            raise self._asker.error
        now = time.monotonic_ns()
        view = self._view(
            *self._asker.last[:3],
            silent=time.monotonic() - self._asker.last.time,
            lost=self._trace.lost,
            rates=self._rates,
            now=now,
        )
        # rich continues where the last line ended, which is elsewhere after a resize.
        # And it takes the size from the environment, which does not change.
        console, size = self._screen.console, terminal.screen()
        console.size = self._dimensions(*size)
        console.control(self._home)
        self._screen.update(view.drawn(size.lines))


def _notify(fd: int) -> None:
    with suppress(BlockingIOError):
        os.write(fd, b"\0")
