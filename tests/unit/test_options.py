"""Options of the mount command, as words and after -o."""

from __future__ import annotations

import argparse

import pytest

from inaccfs import cli
from inaccfs.backing.options import TmpfsOptions
from inaccfs.cli import mount as mount_command
from inaccfs.cli import mountoptions
from inaccfs.config import Config
from inaccfs.control.limits import Limits, Policy
from inaccfs.errors import OptionError
from inaccfs.fuse.mounting import FuseOptions
from inaccfs.shim.frameoptions import SimulatedMemory


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
            "--limit",
            "peers=3",
            "--limit",
            "pages=5",
            "--allow-uid",
            "7",
            "--allow-uid",
            "8",
            "--no-guest-access",
            "--ack-timeout",
            "2.5",
        ),
        (
            "-o",
            "limit=peers=3,limit=pages=5,allow-uid=7,allow-uid=8",
            "-o",
            "no-guest-access,ack-timeout=2.5",
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
        ("--size", NINES),
        ("--size", f"{NINES}k"),
        ("--size", f"{NINES}%"),
        ("--uid", NINES),
        ("--gid", NINES),
        ("--mode", NINES),
        ("--mode", "7" * 5000),
        ("--allow-uid", NINES),
        ("--allow-uid", str(1 << 32)),
        ("--uid", "1_0"),
        ("--limit", f"peers={NINES}"),
        ("--limit", NINES),
        ("--ack-timeout", NINES),
        ("--pfn-source", "simulated", "--simulated-order", NINES),
        ("--pfn-source", "simulated", "--simulated-memory", NINES),
        ("--pfn-source", "simulated", "--simulated-fragmentation", NINES),
        ("--huge", NINES),
        ("--pfn-source", NINES),
        ("--semantics", NINES),
        ("-o", NINES),
        ("-o", f"{NINES}=1"),
        ("-o", f"max_read={NINES}"),
        ("--size", "٣m"),
        ("--uid", "٣"),
        ("-o", f"size={NINES}"),
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
