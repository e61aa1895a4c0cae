"""The daemon's part of `inaccfs mount --trace`: it sends records to the recorder."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from inaccfs import streams
from inaccfs.control.outlet import Outlet
from inaccfs.control.tracing import Tracing, encoded
from inaccfs.errors import MountError, not_started

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inaccfs.control.context import Context

log = logging.getLogger(__name__)

# At the end the recorder may take so long to receive the rest, and again to write it.
_LAST_SECONDS: Final = 5.0


class Recording:
    """A trace from the mount's first request to its last."""

    def __init__(self, path: str, environment: Mapping[str, str]) -> None:
        """Start the process that writes the file at *path*.

        *environment* must let it import this package.

        Raises:
            MountError: the file cannot be written.
        """
        self._path: Final = path
        try:
            fd = streams.create(path, 0o600)
        except OSError as exc:
            raise MountError(f"cannot write the trace {path}: {exc.strerror}") from exc
        with ExitStack() as stack, ExitStack() as undo:
            stack.callback(os.close, fd)
            try:
                self._ours, theirs = socket.socketpair()
                undo.callback(self._ours.close)
                stack.callback(theirs.close)
                self._ours.setblocking(False)
                self._process: Final = subprocess.Popen(
                    [sys.executable, "-P", "-m", "inaccfs.tracing.recorder", str(fd)],
                    pass_fds=[fd],
                    stdin=theirs.fileno(),
                    # The daemon's parent may wait until all writers have closed these.
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                    env=environment,
                )
            except OSError as exc:
                reason = not_started(exc) or exc.strerror
                raise MountError(f"cannot start the recorder: {reason}") from exc
            undo.pop_all()
        self._outlet: Final = Outlet(self._ours)
        self._tracing: Tracing | None = None

    def start(self, context: Context) -> None:
        """Record all events of a mount from now on."""
        self._tracing = Tracing(context, self)
        self._tracing.start()

    def offer(self, data: bytes) -> bool:
        """See `inaccfs.control.outlet.Sink`."""
        try:
            self._outlet.flush()
            return self._outlet.offer(data)
        except OSError as exc:
            log.error(  # noqa: TRY400 - there is nothing to be seen in a traceback
                "the trace %s has ended: %s", self._path, exc.strerror
            )
            assert self._tracing is not None
            self._tracing.stop()
            return True

    def close(self) -> None:
        """Send the rest, and wait until the file is complete: for seconds at most."""
        self._ours.settimeout(_LAST_SECONDS)
        if (tracing := self._tracing) is not None:
            # The recorder has ended or is too slow: then the file lacks the end.
            with suppress(OSError):
                tracing.flush()
                self._outlet.flush()
                self._ours.sendall(encoded([], tracing.stop()))
        self._outlet.close()
        self._ours.close()
        try:
            status = self._process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("the trace %s is still being written", self._path)  # noqa: TRY400
        else:
            if status:
                reason = os.strerror(status) if status > 0 else f"signal {-status}"
                log.error("the trace %s could not be written: %s", self._path, reason)
