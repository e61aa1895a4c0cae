"""Many processes ask for the status during a long walk: no other caller waits."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from inaccfs import status
from tests.mount import raw, support
from tests.mount.peers import peer
from tests.mount.raw import KEEP_SIZE, PUNCH_HOLE
from tests.mount.support import MIB, PAGE, PATIENCE, new_file, opened, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.fuse, support.needs_root]

ASKERS = 60

# A daemon whose walks wait until a file exists.
HELD = """
    import os, sys, time
    from inaccfs.cli import main
    from inaccfs.shim import census

    _, begun, let_go, *arguments = sys.argv
    count = census.count

    def held(root, check):
        open(begun, "w").close()
        while not os.path.exists(let_go):
            check()
            time.sleep(0.01)
        return count(root, check)

    census.count = held
    sys.exit(main(arguments))
"""


@contextmanager
def held_daemon(point: Path, scratch: Path) -> Iterator[Path]:
    """A mount of a directory, whose walks stop midway, and its control socket."""
    script, control = scratch / "held.py", scratch / "control"
    script.write_text(textwrap.dedent(HELD))
    ready_read, ready_write = os.pipe()
    arguments = ("--foreground", "--control", control, "--backing", scratch / "memory")
    with (scratch / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                *(sys.executable, script, scratch / "begun", scratch / "let_go"),
                *("mount", *arguments, "--ready-fd", str(ready_write), point),
            ],
            pass_fds=[ready_write],
            stderr=log,
            env=support.ENVIRONMENT,
        )
    os.close(ready_write)
    try:
        assert os.read(ready_read, 16) == b"ready\n", (scratch / "log").read_text()
        yield control
        support.cli("umount", point)
        assert daemon.wait(PATIENCE) == 0
        support.assert_clean((scratch / "log").read_text())
    finally:
        os.close(ready_read)
        daemon.kill()
        daemon.wait(PATIENCE)
        if support.is_mounted(point):
            support.run("umount", "-l", point)


def test_no_caller_waits_for_requests_of_the_status(point: Path, scratch: Path) -> None:
    begun, let_go = scratch / "begun", scratch / "let_go"
    with (
        support.tmpfs(scratch / "memory"),
        held_daemon(point, scratch) as control,
        ThreadPoolExecutor(ASKERS) as pool,
        peer(control) as asker,
    ):
        path = new_file(point / "file", 16 * MIB)
        asker.begin("query-status")
        answers = [
            pool.submit(os.getxattr, point, status.STATUS_XATTR) for _ in range(ASKERS)
        ]
        try:
            support.ask_until(begun.exists)
            # Operations that take a thread each: allocate, punch, fetch and close.
            with opened(path) as fd, peer(control) as other:
                raw.fallocate(fd, 0, 0, 16 * MIB)
                other.do("get-pfn", file="/file", offset=0, count=4096)
                raw.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 8 * MIB)
                path.unlink()
            support.wait_until_unused(point)
            # Requests that are relayed, like those of the callers that wait.
            new_file(point / "other", PAGE).chmod(0o640)
            assert not any(answer.done() for answer in answers)
        finally:
            let_go.touch()
        assert asker.answer()["return"]["files"] == 1
        done, _ = wait(answers, PATIENCE)
        # Each walk began after the new file was made.
        found = {status.decode(answer.result()).files for answer in done}
        assert found == {1}
        assert len(done) == ASKERS
        assert status_of(point).files == 1
