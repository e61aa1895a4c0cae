"""The peer of a round: it must answer every event."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import TYPE_CHECKING

from tests.hard.round_ import Connection

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor
    from pathlib import Path


def test_an_event_that_comes_together_with_a_reply_is_answered(
    scratch: Path, pool: ThreadPoolExecutor
) -> None:
    path = str(scratch / "control")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        connecting = pool.submit(Connection, path)
        server, _ = listener.accept()
    with server:
        server.sendall(b'{"QMP": {}}\n{"return": {}, "id": "qmp_capabilities"}\n')
        peer = connecting.result()
        assert b"qmp_capabilities" in server.recv(4096)
        server.sendall(
            b'{"return": {}, "id": "invalidate-done"}\n'
            b'{"event": "INVALIDATE", "data": {"notifier": 1, "sequence": 5}}\n'
        )
        with subprocess.Popen(["true"]) as child:
            ended = os.pidfd_open(child.pid)
            peer.answer_until_end(ended)
            os.close(ended)
        answer = json.loads(server.recv(4096, socket.MSG_DONTWAIT))
        peer.close()
    assert answer["arguments"] == {"notifier": 1, "sequence": 5}
