"""`inaccfs setup-system`, and the man pages and completions that it installs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inaccfs import _version
from inaccfs.cli import dispatch, main, manual
from inaccfs.system.files import SHARE

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., tuple[int, str, str]]

BIN = Path(sys.executable).parent


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "usr"


@pytest.fixture
def run(prefix: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def setup(*words: str) -> tuple[int, str, str]:
        status = main(["setup-system", "--prefix", str(prefix), *words])
        out, err = capsys.readouterr()
        return status, out, err

    return setup


def tree(path: Path) -> set[str]:
    return {str(one.relative_to(path)) for one in path.rglob("*") if one.is_file()}


def test_all_users_can_read_what_is_installed_whatever_the_umask(
    run: Run, prefix: Path
) -> None:
    umask = os.umask(0o077)
    try:
        assert run()[0] == 0
    finally:
        os.umask(umask)
    for path in (prefix, *prefix.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o444 == 0o444, path
        assert mode & 0o111 == 0o111 or not path.is_dir(), path


def test_all_files_are_installed_and_removed(run: Run, prefix: Path) -> None:
    status, out, _ = run("--command", "/opt/it's/inaccfs")
    assert status == 0
    assert tree(prefix) >= {
        "sbin/mount.inaccfs",
        "sbin/mount.fuse.inaccfs",
        "lib/systemd/system/inaccfs@.service",
        "share/man/man1/inaccfs.1",
        "share/man/man1/inaccfs-mount.1",
        "share/bash-completion/completions/inaccfs",
        "share/zsh/site-functions/_inaccfs",
        "share/fish/vendor_completions.d/inaccfs.fish",
    }
    assert len(out.splitlines()) == len(tree(prefix)) - 1
    helper = prefix / "sbin/mount.inaccfs"
    assert stat.S_IMODE(helper.stat().st_mode) == 0o755
    # The quote in the path is one word of the shell.
    [line] = re.findall("^inaccfs=.*$", helper.read_text(), re.MULTILINE)
    script = f"{line}; echo $inaccfs"
    found = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert found.stdout == "/opt/it's/inaccfs\n"
    unit = (prefix / "lib/systemd/system/inaccfs@.service").read_text()
    assert '\nExecStart="/opt/it\'s/inaccfs" mount' in unit

    status, _, _ = run("--remove")
    assert status == 0
    assert not prefix.exists()


def test_a_second_run_replaces_and_leaves_nothing_of_the_first(
    run: Run, prefix: Path
) -> None:
    run()
    record = prefix / "share/inaccfs/setup-system.json"
    # As an older version that had one command more would have left it.
    old = prefix / "share/man/man1/inaccfs-older.1"
    shutil.copy(prefix / "share/man/man1/inaccfs.1", old)
    known = json.loads(record.read_text())
    files = known["files"]
    files[str(old)] = files[str(prefix / "share/man/man1/inaccfs.1")]
    record.write_text(json.dumps(known))
    status, out, _ = run("--command", "/another/inaccfs")
    assert status == 0
    assert f"removed {old}\n" in out
    assert not old.exists()
    assert "/another/inaccfs" in (prefix / "sbin/mount.inaccfs").read_text()
    run("--remove")
    assert not prefix.exists()


def test_a_dry_run_changes_nothing(run: Run, prefix: Path) -> None:
    status, out, _ = run("--dry-run")
    assert status == 0
    assert f"would write {prefix}/sbin/mount.inaccfs\n" in out
    assert not prefix.exists()
    run()
    before = tree(prefix)
    status, out, _ = run("--remove", "--dry-run")
    assert status == 0
    assert f"would remove {prefix}/sbin/mount.inaccfs\n" in out
    assert tree(prefix) == before


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_a_foreign_file_is_not_overwritten(run: Run, prefix: Path, kind: str) -> None:
    helper = prefix / "sbin/mount.inaccfs"
    helper.parent.mkdir(parents=True)
    if kind == "file":
        helper.write_text("theirs")
    elif kind == "link":
        helper.symlink_to("theirs")
    else:
        helper.mkdir()
    before = tree(prefix)
    status, out, err = run()
    assert (status, out) == (1, "")
    assert err == (f"inaccfs: {helper} is not from setup-system: move it away first\n")
    assert tree(prefix) == before


def test_a_file_that_was_changed_is_not_removed(run: Run, prefix: Path) -> None:
    run()
    helper = prefix / "sbin/mount.inaccfs"
    helper.write_text("mine")
    status, out, _ = run("--remove")
    assert status == 0
    assert f"left {helper}: it has been changed since\n" in out
    assert tree(prefix) == {"sbin/mount.inaccfs"}


def test_a_directory_that_others_use_stays(run: Run, prefix: Path) -> None:
    run()
    (prefix / "share/man/man1/other.1").write_text("theirs")
    run("--remove")
    assert tree(prefix) == {"share/man/man1/other.1"}


def test_what_cannot_be_written_is_one_line(run: Run, prefix: Path) -> None:
    prefix.write_text("a file")
    status, out, err = run()
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert err.endswith(": Not a directory\n")


def test_directories_of_a_run_that_failed_are_removed(run: Run, prefix: Path) -> None:
    share = prefix / "share"
    share.mkdir(parents=True)
    (share / "man").symlink_to("nowhere")
    status, _, err = run()
    assert (status, err.count("\n")) == (1, 1)
    assert run("--remove")[0] == 0
    assert [str(one.relative_to(prefix)) for one in prefix.rglob("*")] == [
        "share",
        "share/man",
    ]


def test_a_run_that_can_write_no_record_leaves_nothing(run: Run, prefix: Path) -> None:
    prefix.mkdir()
    (prefix / "share").symlink_to("nowhere")
    assert run()[0] == 1
    assert [one.name for one in prefix.rglob("*")] == ["share"]


def test_the_record_is_damaged(run: Run, prefix: Path) -> None:
    run()
    record = prefix / "share/inaccfs/setup-system.json"
    for text in ("{", "[]", '{"files": 1}', "null"):
        record.write_text(text)
        for words in ((), ("--remove",)):
            status, _, err = run(*words)
            assert status == 1
            assert err.startswith(f"inaccfs: {record} is damaged")


def test_nothing_to_remove(run: Run) -> None:
    status, _, err = run("--remove")
    assert status == 1
    assert "nothing to remove" in err


@pytest.mark.parametrize(
    "words", [("--root", ""), ("--prefix", ""), ("--command", "inaccfs")]
)
def test_wrong_words(run: Run, words: tuple[str, ...]) -> None:
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"inaccfs: {words[0]}")


def test_a_package_is_written_below_a_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--root", str(tmp_path), "--command", "/usr/bin/inaccfs"]
    assert main(["setup-system", *words, "--prefix", "/usr"]) == 0
    assert main(["setup-system", *words]) == 0
    capsys.readouterr()
    assert {"usr/sbin/mount.inaccfs", "sbin/mount.inaccfs"} <= tree(tmp_path)
    # fish looks there in each session; below /usr/local on desktops only.
    assert {path for path in tree(tmp_path) if path.endswith("inaccfs.fish")} == {
        "usr/share/fish/vendor_completions.d/inaccfs.fish",
        "etc/fish/completions/inaccfs.fish",
    }
    record = json.loads((tmp_path / "usr/share/inaccfs/setup-system.json").read_text())
    assert "/usr/sbin/mount.inaccfs" in record["files"]
    assert main(["setup-system", *words, "--remove"]) == 0
    assert main(["setup-system", *words, "--prefix", "/usr", "--remove"]) == 0
    assert list(tmp_path.iterdir()) == []


# --- man pages ------------------------------------------------------------------------


def test_the_files_are_what_the_parser_makes() -> None:
    """If not: python -m inaccfs.cli.manual."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("each Python's argparse has words of its own: made with 3.11")
    made = manual.generated(dispatch.parser())
    assert {path: path.read_text() for path in SHARE.rglob("*") if path.is_file()} == (
        made
    )


@pytest.mark.parametrize(
    "page", sorted(SHARE.glob("man/man1/*.1")), ids=lambda p: p.stem
)
def test_man_shows_a_page(page: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("no man(1)")
    found = subprocess.run(
        ["man", "--warnings", "-l", page],
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith(page.stem.upper())
    assert f"inaccfs {_version.__version__}" in found.stdout


# --- completions ----------------------------------------------------------------------


def completed(line: str, directory: Path = SHARE.parent) -> list[str]:
    """What a real bash proposes for the last word of *line* in a directory."""
    script = (
        f"source {shlex.quote(str(SHARE))}/bash-completion/completions/inaccfs; "
        "COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9 COMP_WORDBREAKS=$' \\t\\n='; "
        "_python_argcomplete inaccfs; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    found = subprocess.run(
        ["bash", "-c", script, "bash", line],
        cwd=directory,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [word.strip() for word in found.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("inaccfs moun", {"mount"}),
        ("inaccfs mount --sem", {"--semantics"}),
        ("inaccfs mount --semantics guest_memfd-", {"guest_memfd-6.8"}),
        ("inaccfs experiment com", {"compaction"}),
        ("inaccfs explore late", {"late-slot"}),
        ("inaccfs explore --kvm no-", {"no-retry"}),
        ("inaccfs trace --filter an", {"answer"}),
        ("inaccfs trace --filter punch,an", {"punch,answer"}),
        ("inaccfs status --", {"--help", "--json"}),
        ("inaccfs mount --huge a", {"always", "advise"}),
        ("inaccfs mount --pfn-source ", {"auto", "pagemap", "simulated"}),
        ("inaccfs qmp /nowhere query-st", {"query-stats", "query-status"}),
        ("inaccfs probe memfd --against guest", {"guest_memfd"}),
        ("inaccfs kvm probe --against ", {"/dev/kvm", "recorded", "emulated"}),
    ],
)
def test_bash_completes(line: str, words: set[str]) -> None:
    assert words <= set(completed(line))


def test_bash_offers_no_file_where_none_can_be_meant(tmp_path: Path) -> None:
    (tmp_path / "manual.py").touch()
    for line in (
        "inaccfs umount manual",
        "inaccfs mount manual",
        "inaccfs mount --huge manual",
        "inaccfs kvm probe --against manual",
    ):
        assert completed(line, tmp_path) == [""], line
    line = "inaccfs mount --semantics manual"
    assert completed(line, tmp_path) == ["manual.py"]


def test_each_shell_accepts_its_completions() -> None:
    """A syntax error in one would be seen at each start of the shell."""
    for shell, path in (
        ("bash", "bash-completion/completions/inaccfs"),
        ("zsh", "zsh/site-functions/_inaccfs"),
        ("fish", "fish/vendor_completions.d/inaccfs.fish"),
    ):
        if shutil.which(shell) is not None:
            subprocess.run([shell, "-n", SHARE / path], check=True)
