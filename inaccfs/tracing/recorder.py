"""The process that writes the file of `inaccfs mount --trace`.

usage: python -m inaccfs.tracing.recorder FD

The daemon sends it TRACE events through a socket, which is its standard input, and
passes it an FD of the file. The process ends when the daemon ends, even by a kill, and
completes the file first.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys

from inaccfs._version import __version__
from inaccfs.control import messages, qmp
from inaccfs.tracing.chrome import Picture

_READ_BYTES = 1 << 18


def main() -> int:
    """Write until the daemon closes the socket."""
    # A service manager sends these signals to all processes of the daemon. Ignore them,
    # to record what the daemon does as it ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    lost = 0
    with (
        open(int(sys.argv[1]), "wb") as file,
        socket.socket(fileno=os.dup(0)) as daemon,
    ):
        picture = Picture(file.write)
        framing = qmp.Framing()
        while data := daemon.recv(_READ_BYTES):
            for line in framing.feed(data):
                event = qmp.decode_incoming(line)
                assert isinstance(event, messages.Trace)
                lost = event.lost
                for record in event.records:
                    picture.add(record)
            # Let a reader of the file see it soon.
            file.flush()
        picture.close(lost, __version__)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as exc:
        # The daemon logs the error: this process has no standard error.
        sys.exit(exc.errno or errno.EIO)
