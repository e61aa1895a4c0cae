"""Options: the command line, -o, names of sockets, mountinfo."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import inaccfs
from inaccfs import cli, launch, mountinfo, runtime, status
from inaccfs.backing.options import TmpfsOptions
from inaccfs.cli import mount as mount_command
from inaccfs.cli import mountoptions
from inaccfs.cli import status as status_command
from inaccfs.cli.units import size_text
from inaccfs.config import Config
from inaccfs.control.limits import Limits, Policy
from inaccfs.errors import (
    DeadDaemonError,
    MountError,
    NoAnswerError,
    NoEntryError,
    NotMountedError,
    OptionError,
)
from inaccfs.fuse import finding
from inaccfs.fuse.finding import FSTYPE
from inaccfs.fuse.mounting import FuseOptions
from inaccfs.fuse.mountpoint import Mountpoint
from inaccfs.mountinfo import MountInfo
from inaccfs.shim.frameoptions import SimulatedMemory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def parse(*words: str) -> mountoptions.Options:
    parser = argparse.ArgumentParser()
    mount_command.add_parser(parser.add_subparsers())
    return mountoptions.gather(parser.parse_args(["mount", *words, "/mnt"]))


def config(*words: str) -> Config:
    return mountoptions.parse(parse(*words))


# --- the mount command ------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--size", "1g", "--mode", "750", "--allow-other"),
        ("-o", "size=1g,mode=750,allow_other"),
        ("-o", "size=1g", "-o", "mode=750", "-o", "allow_other"),
        ("-o", ",size=1g,,mode=750,", "--allow-other"),
    ],
    ids=" ".join,
)
def test_options_can_be_written_either_way(words: tuple[str, ...]) -> None:
    found = config(*words)
    assert found.tmpfs == TmpfsOptions(size="1g", mode=0o750)
    assert found.fuse.allow_other


def test_without_words_all_is_the_default() -> None:
    found = config()
    assert found == Config(
        backing=None,
        tmpfs=TmpfsOptions(),
        fuse=FuseOptions(),
        pfn_source="auto",
        simulated=SimulatedMemory(),
        control=None,
        policy=Policy(),
        semantics=None,
        log=None,
    )
    assert found.rules.name == "v8"


@pytest.mark.parametrize(
    "words",
    [
        (
            *("--limit", "peers=3", "--limit", "pages=5", "--allow-uid", "7"),
            *("--allow-uid", "8", "--no-guest-access", "--ack-timeout", "2.5"),
        ),
        (
            *("-o", "limit=peers=3,limit=pages=5,allow-uid=7,allow-uid=8"),
            *("-o", "no-guest-access,ack-timeout=2.5"),
        ),
    ],
    ids=["options", "-o"],
)
def test_the_policy_of_the_control_socket(words: tuple[str, ...]) -> None:
    assert config(*words).policy == Policy(
        Limits(peers=3, pages=5), frozenset({7, 8}), False, 2.5
    )


def test_simulated_memory() -> None:
    words = ("--pfn-source", "simulated", "--simulated-memory", "1g")
    found = config(*words, "-o", "simulated-order=0,simulated-fragmentation=50")
    assert found.pfn_source == "simulated"
    assert found.simulated == SimulatedMemory(1 << 30, 0, 50)


def test_a_value_keeps_its_equals_signs() -> None:
    assert parse("-o", "control=/a=b").ours == {"control": "/a=b"}


def test_other_options_go_to_fuse() -> None:
    options = parse("-o", "ro,fsname=x,size=1m")
    assert options.fuse == ["ro", "fsname=x"]
    assert options.ours == {"size": "1m"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mode", "9"), "octal"),
        (("--mode", "10000"), "octal"),
        (("--mode", "-1"), "octal"),
        (("--uid", "root"), "uid 'root' is not a number"),
        (("--gid", "0x5"), "gid"),
        (("--size", "big"), "is not a size"),
        (("--huge", "yes"), "is not one of"),
        (("-o", "nonsense"), "unknown mount option 'nonsense'"),
        (("-o", "size"), "unknown mount option 'size'"),
        (("--backing", "/d", "--size", "1g"), "--size"),
        (("--backing", "/d", "-o", "huge=always"), "--huge"),
        (("-o", "backing=/d,uid=5"), "--uid"),
        (("--pfn-source", "real"), "pfn-source 'real' is not one of auto, "),
        (("--simulated-order", "3"), "--simulated-order is for --pfn-source sim"),
        (("-o", "pfn-source=simulated,simulated-memory=x"), "is not a size"),
        (("-o", "pfn-source=simulated,simulated-order=x"), "is not a number"),
        (("--ack-timeout", "0"), "ack-timeout '0' is not a number of seconds"),
        (("--ack-timeout", "nan"), "ack-timeout"),
        (("--ack-timeout", "soon"), "ack-timeout"),
        (("--allow-uid", "root"), "allow-uid 'root' is not a number"),
        (("--limit", "peers=0"), "no positive number"),
        (("--limit", "peer=1"), "limit 'peer' is not one of message, peers"),
        (("--limit", ""), "option limit has no value"),
        (("-o", "max_read=junk"), "max_read 'junk' is not a number of bytes"),
        (("-o", "max_read=-1"), "max_read '-1' is not a number"),
        (("-o", "max_read=4294967296"), "give 4294967295 or less"),
    ],
    ids=str,
)
def test_bad_words_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        config(*words)


def test_a_bad_option_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["mount", "-o", "nonsense", "/mnt"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("inaccfs: unknown mount option")
    assert said.err.count("\n") == 1


NINES = "9" * 5000


@pytest.mark.parametrize(
    "words",
    [
        *(("--size", NINES), ("--size", f"{NINES}k"), ("--size", f"{NINES}%")),
        *(
            ("--uid", NINES),
            ("--gid", NINES),
            ("--mode", NINES),
            ("--mode", "7" * 5000),
        ),
        *(("--allow-uid", NINES), ("--allow-uid", str(1 << 32)), ("--uid", "1_0")),
        *(("--limit", f"peers={NINES}"), ("--limit", NINES), ("--ack-timeout", NINES)),
        ("--pfn-source", "simulated", "--simulated-order", NINES),
        ("--pfn-source", "simulated", "--simulated-memory", NINES),
        ("--pfn-source", "simulated", "--simulated-fragmentation", NINES),
        *(("--huge", NINES), ("--pfn-source", NINES), ("--semantics", NINES)),
        *(("-o", NINES), ("-o", f"{NINES}=1"), ("-o", f"max_read={NINES}")),
        *(("--size", "٣m"), ("--uid", "٣"), ("-o", f"size={NINES}")),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_no_number_is_too_long_to_be_refused_in_a_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert cli.main(["mount", *words, "/mnt"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("inaccfs: ")
    assert said.err.count("\n") == 1
    assert len(said.err) < 400


def test_a_mode_may_be_written_as_python_does() -> None:
    assert config("--mode", "0o750").tmpfs.mode == 0o750


# --- mount options ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "flags"),
    [("ro", 1), ("sync", 16), ("noatime", 1024), ("nodiratime", 2048)],
)
def test_flags_go_by_number_and_by_name(option: str, flags: int) -> None:
    options = FuseOptions()
    options.take(option)
    assert (options.flags, options.flag_names) == (flags, [option])


@pytest.mark.parametrize(
    "option",
    ["rw", "defaults", "nosuid", "nodev", "noexec", "_netdev", "x-systemd.automount",
     "nofail", "user", "comment=hello", "X-mount.mkdir", "default_permissions"],
)  # fmt: skip
def test_options_for_fstab_are_ignored(option: str) -> None:
    options = FuseOptions()
    options.take(option)
    assert options == FuseOptions()


@pytest.mark.parametrize("option", ["suid", "dev", "exec"])
def test_options_that_a_mount_never_has_are_refused(option: str) -> None:
    with pytest.raises(OptionError, match="nosuid, nodev and noexec"):
        FuseOptions().take(option)


@pytest.mark.parametrize(
    "option", ["fsname=", "max_read", "context=", "allow_other=1", "", "ro=1", "RO"]
)
def test_a_malformed_option_is_unknown(option: str) -> None:
    with pytest.raises(OptionError, match="unknown"):
        FuseOptions().take(option)


def test_options_that_the_kernel_gets_by_name() -> None:
    options = FuseOptions()
    for option in ("allow_other", "fsname=mem", "max_read=65536", "ro"):
        options.take(option)
    assert options.fsname == "mem"
    assert options.names() == ["default_permissions", "allow_other", "max_read=65536"]


# --- names of sockets and logs ----------------------------------------------------


PATHS = [
    "/",
    "/mnt",
    "/mnt/guest memory",
    "//mnt///a/",
    "/with-dash/and_underscore",
    "/.hidden/.also",
    "/a.b:c",
    "/tab\there\nand\\backslash",
    "/ünïcode/€",
    '/"quotes"/$HOME/%i',
]


@pytest.mark.skipif(
    shutil.which("systemd-escape") is None, reason="no systemd-escape(1)"
)
@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_escaped_as_systemd_does(path: str) -> None:
    ran = subprocess.run(
        ["systemd-escape", "--path", "--", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert runtime.escape(path) == ran.stdout.removesuffix("\n")


def test_root_has_run_if_it_is_his(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For root of a user namespace it is usually another user's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setattr(runtime, "_ROOTS", "/nowhere/inaccfs")
    assert runtime.directory() == "/run/user/0/inaccfs"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert runtime.directory() == "/tmp/inaccfs-0"
    (tmp_path / "other").mkdir()
    if os.getuid() == 0:
        os.chown(tmp_path / "other", 1, 1)
        monkeypatch.setattr(runtime, "_ROOTS", str(tmp_path / "other"))
        assert runtime.directory() == "/tmp/inaccfs-0"
        monkeypatch.setattr(runtime, "_ROOTS", str(tmp_path / "new"))
        assert runtime.directory() == str(tmp_path / "new")


def test_the_socket_of_a_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert runtime.control_path("/mnt/a", None) == "/run/inaccfs/mnt-a.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert runtime.control_path("/mnt", None) == "/run/user/1000/inaccfs/mnt.sock"
    assert runtime.control_path("/mnt", "/elsewhere") == "/elsewhere"
    # It is /tmp/inaccfs-UID itself, because make_directory() checks a directory in
    # /tmp.
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert runtime.directory() == "/tmp/inaccfs-1000"
    assert runtime.control_path("/mnt", None) == "/tmp/inaccfs-1000/mnt.sock"
    assert runtime.log_path("/mnt") == "/tmp/inaccfs-1000/mnt.log"


@pytest.mark.parametrize("path", ["/" + "x" * 106, "/" + "ü" * 53])
def test_a_sockets_path_may_have_107_bytes(path: str) -> None:
    assert runtime.control_path("/mnt", path) == path
    with pytest.raises(MountError, match=r"has 108 bytes.*--control"):
        runtime.control_path("/mnt", path + "x")


@pytest.mark.parametrize("runtime_directory", ["/run/user/1000", "/run/" + "d" * 70])
def test_the_default_socket_of_a_long_mountpoint(
    monkeypatch: pytest.MonkeyPatch, runtime_directory: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_directory)
    mountpoints = [f"/{parent}/{'ü' * 120}/guests" for parent in "ab"]
    paths = {runtime.control_path(mountpoint, None) for mountpoint in mountpoints}
    assert len(paths) == len(mountpoints)
    for path in paths:
        assert len(os.fsencode(path)) <= 107
        assert re.fullmatch(r"[0-9a-f]{12}-.*uests\.sock", os.path.basename(path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/" + "d" * 90)
    with pytest.raises(MountError, match="name a shorter one with --control"):
        runtime.control_path(mountpoints[0], None)


def test_the_name_of_a_mountpoint_is_cut_only_where_it_must() -> None:
    assert runtime.short_name("/mnt/abc", 7) == "mnt-abc"
    shortened = runtime.short_name("/mnt/abcdefghijklmnop", 20)
    assert len(shortened) == 20
    assert shortened.endswith("jklmnop"), shortened
    assert shortened != runtime.short_name("/other/abcdefghijklmnop", 20)


def test_a_log_has_a_name_that_a_file_can_have() -> None:
    path = "/" + "/".join(["deep-er"] * 100)
    for name in (runtime.log_path, runtime.fallback_name):
        assert len(os.path.basename(name(path))) <= 255
        assert name(path) != name(f"/other{path}")


def test_the_directory_is_made_and_closed_to_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "inaccfs"
    monkeypatch.setattr(runtime, "directory", lambda: str(path))
    assert runtime.make_directory() == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o755)
    runtime.make_directory()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def _file(path: Path) -> None:
    path.touch()


def _link(path: Path) -> None:
    path.symlink_to("/tmp")


@pytest.mark.parametrize("make", [_file, _link])
def test_a_directory_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "inaccfs")
    monkeypatch.setattr(runtime, "directory", lambda: str(tmp_path / "inaccfs"))
    with pytest.raises(MountError):
        runtime.make_directory()


# --- mountinfo --------------------------------------------------------------------

MOUNTINFO = rb"""22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/root rw
40 22 0:41 / /mnt/with\040space rw,nosuid - fuse.inaccfs inaccfs rw,user_id=0
41 22 0:42 / /mnt/tab\011nl\012bs\134 rw shared:2 master:1 - fuse.inaccfs - rw
42 22 0:43 / /mnt/other rw - tmpfs tmpfs rw
43 22 0:44 / /mnt/covered rw - fuse.inaccfs inaccfs rw
44 43 0:45 / /mnt/covered rw - tmpfs tmpfs rw
45 22 0:46 / /mnt/twice rw - fuse.inaccfs inaccfs rw
46 45 0:47 / /mnt/twice rw - fuse.inaccfs inaccfs rw
47 22 0:48 / /mnt/\303\274 rw - fuse.inaccfs inaccfs rw
"""


@pytest.fixture
def _mountinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_open(path: str, *mode: str) -> Any:
        assert path == "/proc/self/mountinfo"
        return io.BytesIO(MOUNTINFO)

    monkeypatch.setattr(mountinfo, "open", fake_open, raising=False)


@pytest.mark.usefixtures("_mountinfo")
def test_mounts_are_listed_oldest_first_and_unescaped() -> None:
    assert finding.mounts() == [
        MountInfo("0:41", "/mnt/with space", FSTYPE, 40, 22, "rw,user_id=0"),
        MountInfo("0:42", "/mnt/tab\tnl\nbs\\", FSTYPE, 41, 22, "rw"),
        MountInfo("0:44", "/mnt/covered", FSTYPE, 43, 22, "rw"),
        MountInfo("0:46", "/mnt/twice", FSTYPE, 45, 22, "rw"),
        MountInfo("0:47", "/mnt/twice", FSTYPE, 46, 45, "rw"),
        MountInfo("0:48", "/mnt/ü", FSTYPE, 47, 22, "rw"),
    ]


@pytest.mark.usefixtures("_mountinfo")
def test_a_mount_is_found_by_its_path_and_on_top() -> None:
    assert finding.find("/mnt/with space") == MountInfo(
        "0:41", "/mnt/with space", FSTYPE, 40, 22, "rw,user_id=0"
    )
    assert finding.find("/mnt/./twice/").device == "0:47"
    for path in ("/mnt/covered", "/mnt/other", "/mnt/nothing", "/"):
        with pytest.raises(NotMountedError):
            finding.find(path)


@pytest.mark.usefixtures("_mountinfo")
def test_all_mounts_are_read_and_the_topmost_counts() -> None:
    assert [mount.device for mount in mountinfo.read()] == [
        "0:20",
        *(f"0:{number}" for number in range(41, 49)),
    ]
    covered = MountInfo("0:45", "/mnt/covered", "tmpfs", 44, 43, "rw")
    assert mountinfo.topmost("/mnt/covered") == covered
    assert mountinfo.topmost("/mnt") is None
    assert mountinfo.topmost("/mnt/covered/") is None


def test_mounts_of_this_machine_are_read() -> None:
    proc = mountinfo.topmost("/proc")
    assert proc is not None
    assert proc.fstype == "proc"
    found = os.stat("/proc").st_dev
    assert proc.device == f"{os.major(found)}:{os.minor(found)}"


@pytest.mark.usefixtures("_mountinfo")
def test_mounts_below_a_path_are_found() -> None:
    assert mountinfo.below("/mnt/covered") == ["/mnt/covered"] * 2
    assert len(mountinfo.below("/mnt")) == 8
    assert len(mountinfo.below("/")) == 9
    assert mountinfo.below("/mnt/cov") == []


@pytest.mark.usefixtures("_mountinfo")
def test_a_mount_that_is_covered_is_distinguished() -> None:
    with pytest.raises(NotMountedError, match="that a tmpfs covers: umount /mnt/cov"):
        finding.find("/mnt/covered")


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere", "mkdir -p"), ("file", "not a directory")]
)
def test_a_path_that_cannot_be_mounted_on_is_reported(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match=reason):
        Mountpoint.open(str(tmp_path / name))


def test_an_empty_path_is_not_the_working_directory(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The shell passes an empty path for `inaccfs mount "$unset"`."""
    monkeypatch.chdir(tmp_path)
    for words in (["mount"], ["umount"], ["status"]):
        assert cli.main([*words, ""]) == 2
        assert "mountpoint is empty: name a directory" in capsys.readouterr().err
    assert cli.main(["qmp", "", "query-version"]) == 2
    with pytest.raises(OptionError, match="empty"), inaccfs.mounted(""):
        pass


def test_a_loop_of_links_is_reported(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MountError, match=r"loop: Too many levels of symbolic links$"):
        Mountpoint.open(str(tmp_path / "loop"))


def test_a_mountpoint_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for path in ("link", "real", "real/../link"):
        with Mountpoint.open(str(tmp_path / path)) as found:
            assert found.path == os.path.realpath(tmp_path / "real")
            assert os.path.samestat(os.fstat(found.fd), os.stat(found.path))


# --- status -----------------------------------------------------------------------


STATUS = status.Status(
    mountpoint="/mnt",
    backing="private tmpfs",
    size=0,
    page_size=4096,
    files=2,
    allocated_pages=3,
    semantics="v8",
    sealed=False,
    mmap="not sealed (needs root)",
    pfn_source="pagemap",
    pinning="io_uring",
    pid=42,
    control=None,
    log=None,
    version="1",
)


def test_a_status_survives_its_journey() -> None:
    assert status.decode(status.encode(STATUS)) == STATUS


def test_the_status_of_another_version_is_reported() -> None:
    with pytest.raises(msgspec.ValidationError):
        status.decode(b'{"mountpoint": 5}')


def ask(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, object], *words: str
) -> int:
    """`inaccfs status` where each mount has one of these *answers*."""
    there = [
        MountInfo(f"0:{at}", path, FSTYPE, at, 1, "rw")
        for at, path in enumerate(answers)
    ]

    def read(path: str) -> object:
        answer = answers[path]
        if answer is None:
            there[:] = [mount for mount in there if mount.path != path]
            raise NotMountedError(f"{path} is not an inaccfs mount")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(finding, "mounts", lambda: list(there))
    monkeypatch.setattr(launch, "read_status", read)
    return cli.main(["status", *words])


HIDDEN = NoEntryError("/b: Permission denied: the mount is another user's")


def test_a_mount_that_goes_away_meanwhile_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(monkeypatch, {"/gone": None, "/mnt": STATUS}) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "gone" not in captured.out
    assert ask(monkeypatch, {"/gone": None}) == 0
    assert capsys.readouterr() == ("no inaccfs mounts\n", "")
    assert ask(monkeypatch, {"/gone": None}, "--json") == 0
    assert capsys.readouterr() == ("[]\n", "")


def test_a_mount_that_may_not_be_looked_at_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(monkeypatch, {"/mnt": STATUS, "/b": HIDDEN}) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.endswith(
        "\n\n/b: Permission denied: the mount is another user's\n"
    )
    assert ask(monkeypatch, {"/mnt": STATUS, "/b": HIDDEN}, "--json") == 0
    captured = capsys.readouterr()
    assert msgspec.json.decode(captured.out, type=list[status.Status]) == [STATUS]
    assert captured.err.startswith("inaccfs: /b: Permission denied")


def test_a_mount_that_is_covered_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    covered = NotMountedError("/b is not an inaccfs mount")
    assert ask(monkeypatch, {"/b": covered}) == 0
    assert capsys.readouterr() == ("/b: another mount covers it\n", "")


@pytest.mark.parametrize("failure", [NoAnswerError, DeadDaemonError])
def test_a_daemon_that_does_not_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: type[Exception],
) -> None:
    assert ask(monkeypatch, {"/b": failure("/b: \x1b"), "/mnt": STATUS}) == 1
    captured = capsys.readouterr()
    assert captured.err == "inaccfs: /b: \\x1b\n"
    assert captured.out.startswith("/mnt\n")


def test_a_status_for_people() -> None:
    assert status_command.describe(STATUS).splitlines() == [
        "/mnt",
        "  backing    private tmpfs",
        "  size       no limit",
        "  files      2",
        "  allocated  3 pages of 4 KiB",
        "  semantics  v8",
        "  mmap       not sealed (needs root)",
        "  pfns       pagemap, pinned by io_uring",
        "  pid        42",
        "  control    none",
        "  log        standard error",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2 << 20, "2 MiB"),
        (3 << 30, "3 GiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert size_text(count) == text


def test_a_link_that_is_replaced_while_it_is_resolved_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)

    def readlink(path: str) -> str:
        raise FileNotFoundError(errno.ENOENT, "replaced", path)

    monkeypatch.setattr(os, "readlink", readlink)
    assert finding.resolve(str(link)) == str(link)
