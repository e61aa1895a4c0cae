"""Rules of a user's class on a real mount: what they change, and their errors."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import inaccfs
from tests.mount import raw, support
from tests.mount.notified import LONG, PUNCH, SIZE, guest, mine
from tests.mount.peers import peer
from tests.mount.raw import KEEP_SIZE
from tests.mount.support import PAGE, PATIENCE, allocated, opened, outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.fuse


@contextmanager
def buggy(directory: Path, what: str) -> Iterator[inaccfs.Mount]:
    """A mount whose rules raise for a page number of 13, and for nothing else."""
    wanted = mine(
        directory,
        f"""
        def check_fallocate(self, mode, offset, length, page_size):
            if offset == 13 * page_size:
                raise {what}
            super().check_fallocate(mode, offset, length, page_size)

        def check_size(self, current, new, page_size):
            if new == 13 * page_size:
                raise {what}
            super().check_size(current, new, page_size)
        """,
    )
    # Its log has errors on purpose.
    with inaccfs.mounted(semantics=wanted) as mount:
        yield mount
    assert mount.process.returncode == 0
    assert not support.is_mounted(mount.path)


@pytest.mark.parametrize(
    "what",
    [
        "ZeroDivisionError",
        "SystemExit",
        "KeyboardInterrupt",
        "OSError(-errno.EINVAL, 'as in the kernel')",
        "OSError('EINVAL', 'no number')",
        "OSError(22.0, 'equals one')",
        "type('Mute', (OSError,), {'__repr__': __import__('sys').exit})()",
    ],
)
def test_a_bug_in_a_rule_costs_one_call(scratch: Path, what: str) -> None:
    """That call gets EIO, the log a traceback, and the mount goes on."""
    with buggy(scratch, what) as mount:
        path = mount.path / "guest"
        with (
            opened(path, os.O_RDWR | os.O_CREAT) as fd,
            peer(mount.control) as shim,
            ThreadPoolExecutor() as pool,
        ):
            calls: list[Callable[[], str]] = [
                lambda: outcome(os.ftruncate, fd, 13 * PAGE),
                lambda: outcome(os.truncate, path, 13 * PAGE),
                lambda: outcome(raw.fallocate, fd, KEEP_SIZE, 13 * PAGE, PAGE),
                lambda: outcome(raw.fallocate, fd, KEEP_SIZE, 13 * PAGE, LONG),
                lambda: outcome(raw.punch, fd, 13 * PAGE, PAGE),
                lambda: outcome(raw.punch, fd, 13 * PAGE, LONG),
            ]
            assert [pool.submit(call).result(PATIENCE) for call in calls] == [
                "EIO"
            ] * len(calls)
            # This is so with a notifier, too.
            shim.do("register-notifier", file="/guest")
            for call in calls[2:]:
                assert pool.submit(call).result(PATIENCE) == "EIO"
            refusal = shim.do("memfd-create", name="a", fdname="a", size=13 * PAGE)
            assert refusal.startswith("EIO: a bug")
            assert shim.do("unregister-notifier", notifier=1) == {}

            # The call has had no effect, and everything else works.
            assert (os.fstat(fd).st_size, allocated(fd)) == (0, 0)
            os.ftruncate(fd, SIZE)
            raw.fallocate(fd, KEEP_SIZE, 0, 2 * PAGE)
            raw.punch(fd, 0, PAGE)
            assert outcome(raw.punch, fd, 1, PAGE) == "EINVAL"
            # No rule is called here.
            assert "pfn" in shim.do("get-pfn", file="/guest", offset=13)
        log = mount.log.read_text()
    bugs = 2 * len(calls) - 2 + 1
    assert log.count("in check_fallocate") + log.count("in check_size") == bugs
    assert log.count("Traceback") >= bugs


def test_a_plan_is_not_asked_by_a_peer(scratch: Path) -> None:
    """This is so for a path that is not UTF-8, too."""
    body = """
    _asked = 0

    def plan(self, *, punches):
        self._asked += 1
        if self._asked > 2:
            raise SystemExit
        return super().plan(punches=punches)
    """
    directory = scratch / os.fsdecode(b"\xff")
    directory.mkdir()
    wanted = mine(directory, body)
    with support.mounted(semantics=wanted) as mount, peer(mount.control) as shim:
        for _ in range(3):
            reply = shim.do("query-semantics")
            assert reply["source"] == f"{scratch}/\\xff/mine.py"
            assert reply["events"] == ["INVALIDATE"]


def test_v8_but_before(scratch: Path) -> None:
    """The example of the docs: tools see the effect of the changed rule."""
    wanted = mine(scratch, 'order = "before"')
    with support.mounted(semantics=wanted) as mount, guest(mount, "v8") as it:
        assert it.shim.do("query-semantics")["name"] == "Mine"
        allocation = ("INVALIDATE", 0, 4)
        assert it.fallocate(KEEP_SIZE, 0, 4 * PAGE, allocation) == "ok"
        punch = ("INVALIDATE", 1, 2)
        assert it.fallocate(PUNCH, PAGE, PAGE, punch, blocks="t") == "ok"
    assert sorted(os.listdir(scratch)) == ["mine.py"]


def test_a_size_that_is_free(scratch: Path) -> None:
    """A rule that no version has: a truncation that shrinks the file is a punch."""
    wanted = mine(scratch, 'size = "free"')
    with support.mounted(semantics=wanted) as mount, guest(mount, "v8") as it:
        it.fallocate(KEEP_SIZE, 0, SIZE, ("INVALIDATE", 0, 16))
        shim = it.shim
        assert "extents" in shim.do("get-pfn", file="/guest", offset=0, count=16)
        call = it.pool.submit(outcome, os.ftruncate, it.fd, 4 * PAGE)
        event = shim.event()
        assert (event["event"], event["start"], event["end"]) == ("INVALIDATE", 4, 16)
        shim.done(event)
        assert call.result(PATIENCE) == "ok"
        assert allocated(it.fd) == 4 * PAGE
        assert "EINVAL" in shim.do("get-pfn", file="/guest", offset=4)
        os.ftruncate(it.fd, SIZE + 5)
        assert shim.do("query-stats")["fetched"] == 4


def test_holes_that_are_not_filled(scratch: Path) -> None:
    wanted = mine(scratch, "allocates = False\nnotifies = 'punches'")
    with support.mounted(semantics=wanted) as mount, guest(mount, "v8") as it:
        refusal = it.shim.do("get-pfn", file="/guest", offset=3)
        assert refusal == "ENOENT: page 3 is a hole: allocate it first"
        assert it.fallocate(KEEP_SIZE, 0, 4 * PAGE) == "ok"
        assert "pfn" in it.shim.do("get-pfn", file="/guest", offset=3)
        refusal = it.shim.do("get-pfn", file="/guest", offset=0, count=16)
        assert refusal.startswith("ENOENT: page 4 ")
        assert allocated(it.fd) == 4 * PAGE


# --- wrong options --------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "stays"),
    [("--semantics", True), ("-o", False)],
    ids=["in the foreground", "-o, in the background"],
)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "unknown semantics 'v88': did you mean v8? "),
        ("order = 'sideways'", "semantics Mine.order is 'sideways': it can be "),
        ("def plan(self, **_): 1 / 0", "semantics Mine.plan raises ZeroDivisionError"),
        (
            "def __init__(self): self.read_errno = 5000",
            "semantics Mine.read_errno is 5000: it must be an errno",
        ),
    ],
    ids=["unknown", "wrong", "raises", "wrong when it is made"],
)
def test_wrong_semantics_are_reported_before_there_is_a_mount(
    scratch: Path, point: Path, way: str, stays: bool, body: str | None, words: str
) -> None:
    """The error is one line, with status 2."""
    wanted = "v88" if body is None else mine(scratch, body)
    option = [way, wanted if way == "--semantics" else f"semantics={wanted}"]
    foreground = ["--foreground"] if stays else []
    control = scratch / "control"

    said = support.complaint(
        "mount", *foreground, "--control", control, *option, point, status=2
    )

    assert said.startswith(f"inaccfs: {words}")
    assert not support.is_mounted(point)
    assert not control.exists()
    assert not (scratch / "__pycache__").exists()


def test_mounted_says_what_is_wrong_with_them() -> None:
    with (
        pytest.raises(inaccfs.MountError, match="unknown semantics 'v88'"),
        inaccfs.mounted(semantics="v88"),
    ):
        pass


@pytest.mark.parametrize("way", ["option", "-o"])
def test_a_daemon_in_the_background_finds_a_relative_path(
    scratch: Path, point: Path, way: str
) -> None:
    """The path is relative to the user's directory, though the daemon's is / later."""
    mine(scratch, 'order = "before"')
    wanted = "./mine.py:Mine"
    words = (
        ["--semantics", wanted] if way == "option" else ["-o", f"semantics={wanted}"]
    )
    control, log = scratch / "control", scratch / "log"
    support.cli("mount", "--control", control, "--log", log, *words, point, cwd=scratch)
    try:
        with peer(control) as shim:
            reply = shim.do("query-semantics")
            assert (reply["name"], reply["source"]) == ("Mine", "./mine.py")
            assert reply["order"] == "before"
    finally:
        support.cli("umount", point)
    assert support.log_text(log) == ""
    assert sorted(os.listdir(scratch)) == ["mine.py", "mnt"]
