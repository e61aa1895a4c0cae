"""A process that makes calls for a test and may be killed meanwhile.

    actor relay SOCKET    lines to and from a control socket, whose peer it is
    actor punch FILE OFFSET LENGTH
    actor allocate FILE LENGTH
    actor round MOUNT SOCKET

punch and allocate print "going" when they get a line, make their call, and print its
outcome. round plays the round of round_.py for each line.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys

from tests.hard import plain


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _relay(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection, selectors.DefaultSelector() as s:
        connection.connect(path)
        s.register(0, selectors.EVENT_READ)
        s.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in s.select():
                if key.fd == 0:
                    if not (data := os.read(0, 65536)):
                        return
                    connection.sendall(data)
                else:
                    try:
                        data = connection.recv(65536)
                    except ConnectionResetError:
                        data = b""
                    if not data:
                        return
                    os.write(1, data)


def _one_call(path: str, mode: int, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDWR)
    _say("ready")
    sys.stdin.readline()
    _say("going")
    _say(plain.outcome(plain.fallocate, fd, mode, offset, length))


def _main(what: str, *words: str) -> None:
    if what == "relay":
        _relay(words[0])
    elif what == "punch":
        _one_call(words[0], plain.PUNCH, int(words[1]), int(words[2]))
    elif what == "allocate":
        _one_call(words[0], 0, 0, int(words[1]))
    else:
        from tests.hard import round_

        round_.serve(*words)


if __name__ == "__main__":
    _main(*sys.argv[1:])
