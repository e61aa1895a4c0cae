"""Backings: what can be wrapped, the private tmpfs, and the directory instead of it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from inaccfs import mountcalls, syscalls
from inaccfs.backing import fallback
from inaccfs.backing.fallback import remove_fallbacks
from inaccfs.backing.options import TmpfsOptions
from inaccfs.backing.private import private_tmpfs
from inaccfs.backing.wrapping import wrap
from inaccfs.errors import BackingError, OptionError
from tests import hugepages
from tests.unit.client_fakes import no_fds_leak

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can")


# --- wrapping ---------------------------------------------------------------------


def test_a_directory_on_a_tmpfs_is_wrapped(tree: Path) -> None:
    (tree / "d").mkdir(mode=0o700)
    with closing(wrap(str(tree / "d"))) as backing:
        assert backing.fstype == "tmpfs"
        assert backing.page_size == os.sysconf("SC_PAGE_SIZE")
        assert not backing.private
        assert backing.warnings == []
        assert os.fstat(backing.root).st_ino == (tree / "d").stat().st_ino
        assert backing.description == f"{tree / 'd'} (tmpfs)"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o1777])
def test_a_directory_that_others_can_reach_is_warned_of(tree: Path, mode: int) -> None:
    (tree / "d").mkdir()
    (tree / "d").chmod(mode)
    with closing(wrap(str(tree / "d"))) as backing:
        (warning,) = backing.warnings
        assert f"{mode:04o}" in warning
        assert str(tree / "d") in warning


@as_root
def test_a_directory_of_another_user_is_a_warning(tree: Path) -> None:
    (tree / "d").mkdir(mode=0o700)
    os.chown(tree / "d", 12345, 12345)
    with closing(wrap(str(tree / "d"))) as backing:
        (warning,) = backing.warnings
        assert "12345" in warning


@pytest.mark.parametrize(
    ("directory", "fstype"), [("/proc", "proc"), ("/sys", "sysfs")]
)
def test_another_file_system_is_refused_by_its_name(
    directory: str, fstype: str
) -> None:
    with no_fds_leak(), pytest.raises(BackingError) as caught:
        wrap(directory)
    assert f"{directory} is on {fstype}: it must be" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("nowhere", "No such file"), ("file", "Not a directory")],
)
def test_a_path_that_is_not_a_directory_is_refused(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackingError, match=reason):
        wrap(str(tmp_path / name))


@pytest.fixture
def hugetlbfs(tmp_path: Path) -> Iterator[Path]:
    """A hugetlbfs with two pages, as long as the machine has them."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a hugetlbfs")
    with hugepages.reserved(2, hugepages.default_size()):
        try:
            mountcalls.mount("none", str(tmp_path), "hugetlbfs", 0, "mode=0700")
        except OSError as exc:
            pytest.skip(f"no hugetlbfs: {exc}")
        yield tmp_path
        mountcalls.umount(str(tmp_path), mountcalls.MNT_DETACH)


def test_the_page_of_a_hugetlbfs_is_the_huge_page(hugetlbfs: Path) -> None:
    with closing(wrap(str(hugetlbfs))) as backing:
        assert backing.fstype == "hugetlbfs"
        assert backing.warnings == []
        sizes = Path("/proc/meminfo").read_text().split("Hugepagesize:")[1].split()
        assert backing.page_size == int(sizes[0]) * 1024


# --- the options of a private tmpfs -----------------------------------------------


@pytest.mark.parametrize(
    "size", ["0", "4096", "512m", "1G", "50%", "3k", "2T", "1p", "1E"]
)
def test_sizes_as_tmpfs_has_them(size: str) -> None:
    assert TmpfsOptions(size=size).as_mount_options() == {"size": size}


@pytest.mark.parametrize(
    "size", ["", "m", "-1", "1.5g", "1gb", "1 g", "0x10", "1m,mode=777", "1%%", "1m\n"]
)
def test_other_sizes_are_refused(size: str) -> None:
    with pytest.raises(OptionError, match="is not a size"):
        TmpfsOptions(size=size)


@pytest.mark.parametrize("size", [f"{(1 << 63) - 1}", "7e", "8191p", "8388607T"])
def test_the_largest_sizes(size: str) -> None:
    assert TmpfsOptions(size=size).size == size


@pytest.mark.parametrize("size", [f"{1 << 63}", "8e", "8E", "8192p", "1" + "0" * 30])
def test_no_file_system_is_larger_than_an_offset_can_be(size: str) -> None:
    """The kernel would silently take such a size as another one."""
    with pytest.raises(OptionError, match="more than a file system can have"):
        TmpfsOptions(size=size)


def test_huge_is_one_of_four() -> None:
    for huge in ("never", "always", "within_size", "advise"):
        assert TmpfsOptions(huge=huge).as_mount_options() == {"huge": huge}
    with pytest.raises(OptionError, match="within_size"):
        TmpfsOptions(huge="deny")


def test_options_that_are_not_given_are_the_kernels() -> None:
    assert TmpfsOptions().as_mount_options() == {}
    options = TmpfsOptions(mode=0o1750, uid=0, gid=5).as_mount_options()
    assert options == {"mode": "1750", "uid": "0", "gid": "5"}


# --- the private tmpfs ------------------------------------------------------------


@as_root
def test_no_path_leads_to_a_private_tmpfs() -> None:
    with closing(private_tmpfs(TmpfsOptions(), fallback_name="unused")) as backing:
        assert backing.private
        assert backing.description == "private tmpfs"
        assert backing.warnings == []
        device = os.fstat(backing.root).st_dev
        number = f"{os.major(device)}:{os.minor(device)}".encode()
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
        assert number not in [line.split()[2] for line in mounts]
        assert os.readlink(f"/proc/self/fd/{backing.root}") == "/"
        assert stat.S_IMODE(os.fstat(backing.root).st_mode) == 0o700
        assert not os.path.samestat(os.fstat(backing.root), os.stat("/"))
        flags = os.fstatvfs(backing.root).f_flag
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
        assert flags & os.ST_NOEXEC


@as_root
def test_the_options_reach_the_kernel() -> None:
    options = TmpfsOptions(size="1m", mode=0o751, uid=12, gid=34)
    with closing(private_tmpfs(options, fallback_name="unused")) as backing:
        found = os.fstat(backing.root)
        assert stat.S_IMODE(found.st_mode) == 0o751
        assert (found.st_uid, found.st_gid) == (12, 34)
        space = os.fstatvfs(backing.root)
        assert space.f_blocks * space.f_frsize == 1 << 20


@as_root
def test_a_private_tmpfs_goes_with_its_fd() -> None:
    with no_fds_leak():
        private_tmpfs(TmpfsOptions(), fallback_name="unused").close()


@as_root
def test_an_option_that_the_kernel_refuses_is_reported() -> None:
    options = TmpfsOptions(uid=(1 << 32) - 1)
    with pytest.raises(BackingError, match=r"uid=4294967295"):
        private_tmpfs(options, fallback_name="unused")


def test_a_kernel_without_the_calls_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(options: dict[str, str], flags: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), "tmpfs")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(mountcalls, "detached_tmpfs", missing)
    with pytest.raises(BackingError, match=r"Linux 5\.2"):
        private_tmpfs(TmpfsOptions(), fallback_name="unused")


# --- the directory instead of it --------------------------------------------------


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch, tree: Path) -> Path:
    """No user namespaces, and an XDG_RUNTIME_DIR that is a tmpfs; its path."""

    def refused(flags: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    user = os.geteuid() or 4321
    os.chown(tree, user, -1)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(syscalls, "unshare", refused)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tree))
    return tree


forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


@forks
def test_without_user_namespaces_a_directory_stands_in(refusing: Path) -> None:
    options = TmpfsOptions(mode=0o750)
    backing = private_tmpfs(options, fallback_name="inaccfs-test")
    made = refusing / f"inaccfs-test.{os.getpid()}"
    assert stat.S_IMODE(made.stat().st_mode) == 0o750
    assert not backing.private
    assert backing.directory == str(made)
    (warning,) = backing.warnings
    assert str(made) in warning
    assert "Operation not permitted" in warning
    (made / "d").mkdir()
    backing.close()
    assert os.listdir(refusing) == []


@forks
def test_by_default_it_is_its_owners_alone(refusing: Path) -> None:
    with closing(private_tmpfs(TmpfsOptions(), fallback_name="t")):
        made = refusing / f"t.{os.getpid()}"
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


@forks
@pytest.mark.parametrize("options", [{"size": "1m"}, {"huge": "never"}])
def test_options_that_need_a_private_tmpfs_are_refused(
    refusing: Path, options: dict[str, str]
) -> None:
    with pytest.raises(BackingError, match="leave them out"):
        private_tmpfs(TmpfsOptions(**options), fallback_name="t")  # type: ignore[arg-type]
    assert os.listdir(refusing) == []


@forks
def test_a_directory_that_is_not_on_a_tmpfs_is_skipped(
    refusing: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def magic(fd: int) -> int:
        found = os.readlink(f"/proc/self/fd/{fd}")
        return 0xEF53 if found.startswith(str(tmp_path)) else syscalls.TMPFS_MAGIC

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(syscalls, "fstatfs_magic", magic)
    with closing(private_tmpfs(TmpfsOptions(), fallback_name="inaccfs-t")) as backing:
        assert backing.directory == f"/dev/shm/inaccfs-t.{os.getpid()}"
    assert not os.path.exists(f"/dev/shm/inaccfs-t.{os.getpid()}")
    assert os.listdir(tmp_path) == []


@forks
def test_no_place_for_a_fallback_is_reported(
    refusing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "fstatfs_magic", lambda fd: 0xEF53)
    with no_fds_leak(), pytest.raises(BackingError, match="--backing DIR"):
        private_tmpfs(TmpfsOptions(), fallback_name="inaccfs-t")
    assert os.listdir(refusing) == []


@forks
def test_a_child_that_dies_without_a_word_is_no_hang(
    refusing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(flags: int) -> None:
        os._exit(3)

    monkeypatch.setattr(syscalls, "unshare", dies)
    with closing(private_tmpfs(TmpfsOptions(), fallback_name="t")) as backing:
        assert "Input/output error" in backing.warnings[0]


def _left_over(parent: Path, name: str) -> Path:
    """A directory as the daemon of this user leaves one when it is killed."""
    (parent / name / "old").mkdir(parents=True)
    os.chown(parent / name, os.geteuid(), -1)
    return parent / name


@forks
def test_the_directory_of_a_killed_daemon_is_removed_first(refusing: Path) -> None:
    """Even if its pid is in use again, by this process for instance."""
    _left_over(refusing, "t.1")
    _left_over(refusing, f"t.{os.getpid()}")
    with closing(private_tmpfs(TmpfsOptions(), fallback_name="t")):
        assert os.listdir(refusing) == [f"t.{os.getpid()}"]
        assert os.listdir(refusing / f"t.{os.getpid()}") == []


@forks
@pytest.mark.parametrize("step", ["flock", "open_root"])
def test_one_that_another_process_removes_before_it_is_locked_is_made_again(
    step: str, refusing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: Any = fcntl if step == "flock" else fallback
    true = getattr(where, step)
    removed: list[Path] = []

    def late(*arguments: Any) -> Any:
        if not removed and (made := list(refusing.iterdir())):
            removed.extend(made)
            os.chown(removed[0], os.geteuid(), -1)
            remove_fallbacks("t")
            assert os.listdir(refusing) == []
        return true(*arguments)

    fds = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(where, step, late)
    with closing(private_tmpfs(TmpfsOptions(), fallback_name="t")) as backing:
        assert removed == [refusing / f"t.{os.getpid()}"]
        os.close(os.open("file", os.O_CREAT, dir_fd=backing.root))
        assert os.listdir(removed[0]) == ["file"]
    assert len(os.listdir("/proc/self/fd")) == fds


@forks
def test_a_live_daemons_is_left_alone(refusing: Path) -> None:
    """In any pid namespace: its lock counts, not its pid."""
    with closing(private_tmpfs(TmpfsOptions(), fallback_name="t")):
        os.rename(refusing / f"t.{os.getpid()}", refusing / "t.999999999")
        os.chown(refusing / "t.999999999", os.geteuid(), -1)
        with closing(private_tmpfs(TmpfsOptions(), fallback_name="t")):
            assert len(os.listdir(refusing)) == 2
        os.rename(refusing / "t.999999999", refusing / f"t.{os.getpid()}")
    assert os.listdir(refusing) == []


def test_another_mounts_is_left_alone(refusing: Path) -> None:
    names = {"t2.1", "t.x.1", "t", "xt.1"}
    for name in {*names, "t.1"}:
        _left_over(refusing, name)
    remove_fallbacks("t")
    assert set(os.listdir(refusing)) == names


@as_root
def test_a_directory_of_another_user_is_left_alone(refusing: Path) -> None:
    os.chown(_left_over(refusing, "t.1"), os.geteuid() + 1, -1)
    remove_fallbacks("t")
    assert os.listdir(refusing) == ["t.1"]


def test_a_link_or_file_is_neither_followed_nor_in_the_way(
    refusing: Path, tmp_path: Path
) -> None:
    _left_over(tmp_path, "precious")
    (refusing / "t.1").symlink_to(tmp_path / "precious")
    (refusing / "t.2").touch()
    os.mkfifo(refusing / "t.3")
    _left_over(refusing, "t.4")
    remove_fallbacks("t")
    assert os.listdir(tmp_path / "precious") == ["old"]
    assert sorted(os.listdir(refusing)) == ["t.1", "t.2", "t.3"]


def test_removing_a_missing_directory_is_no_error(refusing: Path) -> None:
    remove_fallbacks("nothing")


def test_a_parent_that_does_not_exist_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") not in fallback._parents()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert set(fallback._parents()) <= {"/dev/shm"}
