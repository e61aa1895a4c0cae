"""Other users, root in their namespaces, and other processes of the daemon's user."""

from __future__ import annotations

import json
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from inaccfs import runtime
from tests.mount import support
from tests.mount.support import NOBODY, PAGE, TOP, new_file

if TYPE_CHECKING:
    from pathlib import Path

    from inaccfs import Mount
    from tests.hard.census import Ground

pytestmark = pytest.mark.fuse

DENIED: Final = {"EACCES", "EPERM"}

ANOTHER_UID: Final = 4711


def stranger(
    mount: Mount, uid: int, namespace: str, *files: Path, control: str | None = None
) -> dict[str, dict[str, Any]]:
    """The outcomes of the attempts of a process of user *uid*."""
    ran = support.run(
        sys.executable,
        "-m",
        "tests.hard.stranger",
        str(uid),
        namespace,
        mount.path,
        str(mount.pid),
        control or mount.control,
        *files,
        cwd=TOP,
        status=None,
    )
    if "Operation not permitted" in ran.stderr and "unshare" in ran.stderr:
        pytest.skip("no user namespaces here")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, dict[str, Any]] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("namespace", ["no", "yes"])
@pytest.mark.parametrize("allow_other", [False, True])
def test_another_user_gets_nowhere(
    ground: Ground, point: Path, namespace: str, allow_other: bool
) -> None:
    """This includes root in a user namespace of that user, with --allow-other, too."""
    with support.mounted(
        point, control=ground.path / "control", allow_other=allow_other
    ) as mount:
        new_file(point / "file", PAGE)
        found = stranger(mount, NOBODY, namespace, mount.log)
        assert set(found["attempts"].values()) <= DENIED, found
        assert found["control"] == {"connect": "EACCES"}
        assert mount.process.poll() is None


@pytest.mark.parametrize("namespace", ["no", "yes"])
def test_the_uid_decides_where_the_socket_is_open_to_all(
    ground: Ground, point: Path, namespace: str
) -> None:
    options = f"allow-uid={ANOTHER_UID}"
    with support.mounted(
        point, control=ground.path / "control", options=options
    ) as mount:
        new_file(point / "file", PAGE)
        found = stranger(mount, NOBODY, namespace)
        assert found["control"] == {"connect": "hung up"}


@pytest.mark.parametrize("namespace", ["no", "yes"])
def test_the_permissions_of_allow_uid(
    ground: Ground, point: Path, namespace: str
) -> None:
    """They may query all and send fds; paths, get-memory and quit are refused."""
    options = f"allow-uid={NOBODY}"
    with support.mounted(
        point, control=ground.path / "control", options=options
    ) as mount:
        new_file(point / "file", PAGE)
        found = stranger(mount, NOBODY, namespace, mount.log)
        assert set(found["attempts"].values()) <= DENIED, found
        allowed = {"connect", "qmp_capabilities", "query-version"}
        allowed |= {"query-status", "query-files", "query-pins"}
        by_path = {"get-pfn", "put-pfn", "query-file", "register-notifier"}
        assert found["control"] == {
            **dict.fromkeys(allowed, "ok"),
            **dict.fromkeys(by_path | {"get-memory", "quit"}, "EPERM"),
        }
        assert mount.process.poll() is None


def test_the_daemons_own_user_does_not_reach_into_it(
    ground: Ground, point: Path
) -> None:
    """It has no capabilities: it is root of a new user namespace with the same uid."""
    with support.mounted(point, control=ground.path / "control") as mount:
        new_file(point / "file", PAGE)
        found = stranger(mount, 0, "yes", control="-")
        assert len(found["attempts"]) == 9
        assert set(found["attempts"].values()) <= DENIED, found


def test_the_runtime_directory_is_for_its_user(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ground.path / "runtime"
    monkeypatch.setattr(runtime, "directory", lambda: str(path))
    runtime.make_directory()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o777)
    runtime.make_directory()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.rmdir()
