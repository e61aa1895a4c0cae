"""Building and booting the emulated machine's kernel: stages, interruptions, errors.

The source is a tarball with a Makefile of a few lines, and dpkg-query a script.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

import inaccfs
from inaccfs.kvm.live import boot, kernel, places
from inaccfs.kvm.live.places import Kernel, LiveError, Source

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGE: Final = "linux-source-9.9"
VERSION: Final = "9.9.1-1"

# It has goals, and O= for the output folder, as the kernel's. A goal that the source's
# file "fails" names fails; one in "hangs" never ends.
MAKEFILE = """\
S := $(CURDIR)
define goal
	@echo $@ >> $(S)/calls
	@! grep -qx $@ $(S)/fails
	@if grep -qx $@ $(S)/hangs; then echo > $(S)/hanging; exec sleep 1000; fi
endef
tinyconfig:
	$(goal)
	echo CONFIG_TINY=y > $(O)/.config
olddefconfig headers:
	$(goal)
bzImage:
	$(goal)
	mkdir -p $(O)/arch/x86/boot && echo kernel > $(O)/arch/x86/boot/bzImage
"""

MERGE = """\
#!/bin/sh
# merge_config.sh -m -O DIR CONFIG FRAGMENT
cat "$5" >> "$4"
"""

SELFTESTS = """\
$(OUTPUT)/%:
	mkdir -p $(@D) && echo $(EXTRA_CFLAGS) > $@ && touch $@.o
"""

DPKG = """\
#!/bin/sh
for package; do
    case $package in
        -*|*'$'*|{missing}) ;;
        {package}) echo "$package installed {version}" ;;
        *) echo "$package installed 1" ;;
    esac
done
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source package: the unpacked tree, from which its tarball is made."""
    tree = tmp_path / "tree"
    files = {
        "Makefile": MAKEFILE,
        "scripts/kconfig/merge_config.sh": MERGE,
        "tools/testing/selftests/kvm/Makefile": SELFTESTS,
        "tools/testing/selftests/kvm/guest_memfd_test.c": "",
        "tools/testing/selftests/kvm/x86/private_mem_kvm_exits_test.c": "",
        "fails": "",
        "hangs": "",
    }
    for name, text in files.items():
        path = tree / "linux-9.9" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    pack(tree)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("INACCFS_LINUX_SOURCE", PACKAGE)
    monkeypatch.setattr(
        Source, "tarball", property(lambda _self: tmp_path / "source.tar.xz")
    )
    has_packages(tmp_path, monkeypatch)
    return tree / "linux-9.9"


def pack(tree: Path) -> None:
    with tarfile.open(tree.parent / "source.tar.xz", "w:xz") as tar:
        tar.add(tree / "linux-9.9", "linux-9.9")


def has_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str = "none"
) -> None:
    """All packages but *missing*, names with | between, are installed."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    text = DPKG.format(missing=missing, package=PACKAGE, version=VERSION)
    (folder / "dpkg-query").write_text(text)
    (folder / "dpkg-query").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def work() -> Path:
    """The folder of the unfinished build."""
    (found,) = places.cache().glob("*.building")
    return found


def calls() -> list[str]:
    return (work() / "linux/calls").read_text().split()


def build() -> tuple[Kernel, list[str]]:
    said: list[str] = []
    return kernel.build(said.append), said


@pytest.mark.usefixtures("tree")
def test_a_kernel_is_built_once() -> None:
    built, said = build()
    assert built.image.read_text() == "kernel\n"
    assert "CONFIG_KVM_SW_PROTECTED_VM=y\n" in (built.directory / "config").read_text()
    assert built.source == f"{PACKAGE} {VERSION}"
    assert built.release == VERSION
    assert len(said) == 4
    assert places.find_kernel() == built
    assert list(places.cache().glob("*.building")) == []
    assert build() == (built, [])


@pytest.mark.usefixtures("tree")
def test_the_selftests_that_there_are_are_built() -> None:
    """The folder for x86 has had two names."""
    built, _ = build()
    found = {
        str(path.relative_to(built.selftests)): path.read_text()
        for path in built.selftests.rglob("*")
        if path.is_file()
    }
    assert found == {
        "guest_memfd_test": "-static\n",
        "x86/private_mem_kvm_exits_test": "-static\n",
    }


def test_a_build_that_failed_goes_on_where_it_was(tree: Path) -> None:
    (tree / "fails").write_text("bzImage\n")
    pack(tree.parent)
    with pytest.raises(
        LiveError, match=r"make failed with status 2: see .*/log"
    ) as message:
        build()
    assert Path(str(message.value).rpartition(" ")[2]).is_file()
    with pytest.raises(LiveError, match=r"there is no kernel in .*kvm live build"):
        places.find_kernel()
    assert calls() == ["tinyconfig", "olddefconfig", "bzImage"]
    (work() / "linux/fails").write_text("")
    _, said = build()
    assert [line.split(" ")[0] for line in said] == ["going", "building", "building"]


KILLED = """
import sys
from pathlib import Path
from inaccfs.kvm.live import kernel, places
from inaccfs.kvm.live.places import Source
Source.tarball = property(lambda self: Path(sys.argv[1]))
kernel.build(print)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_build_that_was_killed_goes_on_where_it_was(
    tree: Path, number: signal.Signals
) -> None:
    """The processes that it started end with it, and do not disturb the next build."""
    (tree / "hangs").write_text("bzImage\n")
    pack(tree.parent)
    tarball = str(tree.parent.parent / "source.tar.xz")
    top = str(Path(inaccfs.__file__).parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, tarball],
        env={**os.environ, "PYTHONPATH": top},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not any(places.cache().glob("*.building/linux/hanging")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
    (work() / "linux/hangs").write_text("")
    _, said = build()
    assert [line.split(" ")[0] for line in said] == ["going", "building", "building"]


def test_a_half_unpacked_source_is_unpacked_anew(tree: Path) -> None:
    tarball = tree.parent.parent / "source.tar.xz"
    whole = tarball.read_bytes()
    tarball.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LiveError, match="tar failed"):
        build()
    tarball.write_bytes(whole)
    (work() / "linux/left").touch()
    build()


@pytest.mark.usefixtures("tree")
def test_two_builds_are_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_PATIENCE", 0.0)
    places.cache().mkdir(parents=True)
    lock = places.cache() / f"{places.key(places.find_source())}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LiveError, match="another process builds this kernel"):
            build()
    build()


def test_all_missing_packages_are_named_at_once(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_packages(tree.parent.parent, monkeypatch, "flex|bc|qemu-system-x86")
    with pytest.raises(
        LiveError, match=r"apt-get install .*recommends bc flex qemu-sys"
    ):
        build()


@pytest.mark.usefixtures("tree")
def test_on_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    other = os.uname_result((*os.uname()[:4], "aarch64"))
    monkeypatch.setattr(os, "uname", lambda: other)
    with pytest.raises(LiveError, match="x86_64, and runs no Python of aarch64"):
        build()


def test_a_kernel_that_is_built_needs_no_packages(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, _ = build()
    has_packages(tree.parent.parent, monkeypatch, PACKAGE)
    assert build() == (built, [])


def test_where_there_is_no_dpkg(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tree))
    with pytest.raises(LiveError, match="no Debian: there is no dpkg-query"):
        build()


def test_an_option_that_the_kernel_does_not_take_is_told(tree: Path) -> None:
    (tree / "scripts/kconfig/merge_config.sh").write_text("#!/bin/sh\n")
    pack(tree.parent)
    with pytest.raises(
        LiveError, match=r"does not take .*CONFIG_KVM_SW_PROTECTED_VM=y"
    ):
        build()


@pytest.mark.usefixtures("tree")
def test_a_cache_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(LiveError, match=r"cannot build: .*/file/inaccfs.*: Not a dir"):
        build()


def test_another_source_or_configuration_is_another_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = places.key(Source("linux-source-6.12", "6.12.117-1"))
    assert places.key(Source("linux-source-6.12", "6.12.118-1")) != one
    monkeypatch.setattr(places, "config", lambda: b"other")
    assert places.key(Source("linux-source-6.12", "6.12.117-1")) != one


def test_the_cache_is_where_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, place in {
        "/x": "/x/inaccfs/kvm-live",
        "relative": "/h/.cache/inaccfs/kvm-live",
        "": "/h/.cache/inaccfs/kvm-live",
    }.items():
        monkeypatch.setenv("HOME", "/h")
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert places.cache() == Path(place)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    # expanduser() leaves the path as it is if the uid has no name.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(LiveError, match="set XDG_CACHE_HOME"):
        places.find_kernel()


# --- booting --------------------------------------------------------------------------

# A machine that runs the command of its folder; -serial names its folder.
QEMU = """\
#!/bin/sh
for word; do
    case $word in file:*) out=${{word#file:}}; out=${{out%/console}} ;; esac
done
{body}
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a QEMU in the PATH that does what a script says."""
    folder = tmp_path / "qemu"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def make(body: str) -> None:
        (folder / "qemu-system-x86_64").write_text(QEMU.format(body=body))
        (folder / "qemu-system-x86_64").chmod(0o755)

    return make


KERNEL: Final = Kernel(Path("/nowhere"), f"{PACKAGE} {VERSION}")


def test_a_command_gives_its_status_output_and_files(
    machine: Callable[[str], None],
) -> None:
    machine(
        'cd $out; sh command >stdout 2>stderr; echo $? >status; echo x >"rows.json"'
    )
    run = boot.run(KERNEL, "echo out; echo err >&2; exit 3")
    assert (run.status, run.stdout, run.stderr) == (3, "out\n", "err\n")
    assert run.files["rows.json"] == b"x\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo no such CPU >&2; exit 1", "ended early; it said: no such CPU"),
        ("echo one >$out/console; echo Panic >>$out/console", "said: one / Panic"),
        ("exit 0", "it said: nothing"),
        ("exec sleep 1000", "has not ended in 0.1 seconds"),
    ],
)
def test_a_machine_that_does_not_end_well(
    machine: Callable[[str], None], body: str, message: str, tmp_path: Path
) -> None:
    machine(body)
    with pytest.raises(LiveError, match=message):
        boot.run(KERNEL, "true", 0.1 if "sleep" in body else 60)
    assert list(tmp_path.glob("inaccfs-live-*")) == []


def test_without_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LiveError, match="no qemu-system-x86_64; as root: apt-get"):
        boot.run(KERNEL, "true")


def test_rows_can_be_asked_with_the_standard_library_alone() -> None:
    """Under an emulated CPU imports are slow, and there may be no site-packages."""
    program = """
import sys
from inaccfs.kvm.probe import inside
ours = ("inaccfs", "__main__")
known = sys.stdlib_module_names
foreign = {name.partition(".")[0] for name in sys.modules}
print(sorted(foreign - set(known) - set(ours)))
"""
    top = str(Path(inaccfs.__file__).parent.parent)
    found = subprocess.run(
        [sys.executable, "-S", "-s", "-c", program],
        env={"PYTHONPATH": top},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "[]\n"
