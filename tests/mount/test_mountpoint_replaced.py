"""A mountpoint that is replaced by another while it is mounted on."""

from __future__ import annotations

import shlex
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.mount import support
from tests.mount.support import run

if TYPE_CHECKING:
    from tests.mount.nobody import Nobody

pytestmark = [pytest.mark.fuse, support.needs_root]


def fake_fusermount3(user: Nobody, script: str) -> None:
    """Replace fusermount3 by a shell *script*; $real is the original."""
    place = user.home / "bin"
    real = shutil.which("fusermount3")
    text = f"#!/bin/sh\nreal={real} home={user.home}\n{script}\n"
    user.namespace.shell(
        f"mkdir -p {place}; printf %s {shlex.quote(text)} > {place}/fusermount3; "
        f"chmod 755 {place}/fusermount3"
    )
    user.environment["PATH"] = f"{place}:/usr/bin:/bin"


WORDS = '"$@"'

SWAP = "mv $home/mnt $home/moved; ln -s victim $home/mnt"


@pytest.mark.parametrize(
    "script",
    [
        # Before fusermount3 checks the path; it runs in the directory itself, wherever
        # that is.
        f"{SWAP}; exec $real {WORDS}",
        # After it has checked the path, in its own path walk.
        f'{SWAP}; cd /; exec $real "$1" "$2" $home/mnt/.',
        # After it has mounted: only a directory above the mountpoint can be renamed
        # then.
        f"$real {WORDS} && mv $home/dir $home/away && mkdir -p $home/dir/mnt",
        # The mount is made, and then fusermount3 fails.
        f"$real {WORDS}; echo fusermount3: oh >&2; exit 1",
    ],
    ids=["before", "inside", "after", "failed"],
)
def test_a_users_mountpoint_that_is_replaced_leaves_no_mount(
    nobody: Nobody, script: str
) -> None:
    nobody.run("mkdir", "-p", nobody.home / "victim", nobody.home / "dir" / "mnt")
    # The script does not change unmounting.
    fake_fusermount3(nobody, f'[ "$1" = -o ] || exec $real {WORDS}; {script}')
    point = nobody.home / "dir" / "mnt" if "$home/dir" in script else nobody.point
    message = nobody.complaint("mount", "--log", nobody.log, point)
    if "oh" in script:
        assert message == f"inaccfs: cannot mount on {point}: oh\n"
    else:
        assert (
            f"mountpoint {point} was replaced while it was to be mounted on" in message
        )
    left = nobody.namespace.run("cat", "/proc/self/mountinfo").stdout
    assert f"{nobody.home}/" in left
    assert not [
        line
        for line in left.splitlines()
        if "fuse.inaccfs" in line and f"{nobody.home}/" in line
    ]


# Mounts while another thread swaps directories; prints how often each happened.
SWAPPER = """
import os, sys, threading, time
from inaccfs.errors import MountError
from inaccfs import mountinfo
from inaccfs.fuse import finding, mounting, unmounting
from inaccfs.fuse.mountpoint import Mountpoint

home = sys.argv[1]
point, moved, victim = (os.path.join(home, name) for name in ("mnt", "m2", "victim"))
os.mkdir(victim)
stop = threading.Event()

def swap():
    while not stop.is_set():
        try:
            os.rename(point, moved)
        except OSError:
            continue
        os.symlink(victim, point)
        os.unlink(point)
        os.rename(moved, point)

thread = threading.Thread(target=swap, daemon=True)
thread.start()
made = refused = 0
end = time.monotonic() + 30
while made + refused < 60 and time.monotonic() < end:
    try:
        with Mountpoint.open(point) as mountpoint:
            if mountpoint.path == victim:
                # Chosen by who looks while the link is there: a link may be named.
                continue
            new = mounting.mount(mountpoint, mounting.FuseOptions())
    except MountError as exc:
        refused += 1
        assert str(exc).count("\\n") == 0
        assert not [m for m in finding.mounts() if m.path.startswith(home + "/")]
    else:
        made += 1
        assert new.info.path == point
        os.close(new.fuse)
        unmounting.unmount(new.info, lazy=True)
stop.set()
thread.join()
assert not [m for m in finding.mounts() if m.path.startswith(home + "/")]
print(made, refused)
"""


def test_a_users_mountpoint_that_is_replaced_all_the_time(nobody: Nobody) -> None:
    run(*nobody.python("-c", SWAPPER, nobody.home))


def test_roots_mountpoint_that_is_replaced_all_the_time(nobody: Nobody) -> None:
    nobody.namespace.run(sys.executable, "-c", SWAPPER, nobody.home)
