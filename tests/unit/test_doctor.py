"""inaccfs doctor on machines that lack something: what it says, and what to do."""

from __future__ import annotations

import errno
import os
import resource
import stat
from dataclasses import dataclass, field
from importlib import metadata

import msgspec
import pytest

from inaccfs import doctor, kvmcalls
from inaccfs.cli import main, report
from inaccfs.cli.doctor import as_text
from inaccfs.doctor import Finding
from inaccfs.machine import Machine

ALL_CAPABILITIES = (1 << 41) - 1


def result(mode: int, uid: int = 0) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, 0, 0, 0, 0, 0))


@dataclass
class Pretended(Machine):
    """A machine that has everything that a test does not take away."""

    user: int = 0
    effective: int = ALL_CAPABILITIES
    files: dict[str, os.stat_result] = field(
        default_factory=lambda: {
            "/dev/fuse": result(stat.S_IFCHR | 0o666),
            "/usr/bin/fusermount3": result(stat.S_IFREG | 0o4755),
            "/run": result(stat.S_IFDIR | 0o755),
            "/": result(stat.S_IFDIR | 0o755),
        }
    )
    texts: dict[str, str] = field(
        default_factory=lambda: {
            "/etc/fuse.conf": "# a comment\nuser_allow_other\n",
            "/boot/config-6.12.1": "CONFIG_FUSE_PASSTHROUGH=y\n",
        }
    )
    limits: dict[int, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    initial: bool = True
    frames: bool = True
    kvm: str = ""
    namespaces: str = ""
    linux: str = "6.12.1"
    writable: bool = True

    def uid(self) -> int:
        return self.user

    def release(self) -> str:
        return self.linux

    def stat(self, path: str) -> os.stat_result | None:
        return self.files.get(path)

    def read(self, path: str) -> str | None:
        return self.texts.get(path)

    def which(self, command: str) -> str | None:
        path = f"/usr/bin/{command}"
        return path if path in self.files else None

    def may_write(self, path: str) -> bool:
        return self.writable

    def limit(self, number: int) -> int | None:
        return self.limits.get(number)

    def capabilities(self) -> int:
        return self.effective

    def is_initial_namespace(self) -> bool:
        return self.initial

    def _try(self, name: str) -> OSError | None:
        number = self.refusals.get(name)
        return None if number is None else OSError(number, os.strerror(number))

    def user_namespaces(self) -> str:
        return self.namespaces

    def try_device(self, path: str) -> OSError | None:
        return self._try(path)

    def try_io_uring(self) -> OSError | None:
        return self._try("io_uring")

    def try_cachestat(self) -> OSError | None:
        return self._try("cachestat")

    def shows_frames(self) -> bool:
        return self.frames

    def guest_memfd(self) -> str:
        return self.kvm


def without(*names: str) -> Pretended:
    made = Pretended()
    for name in names:
        del (made.files if name in made.files else made.texts)[name]
    return made


def lacking(machine: Machine) -> dict[str, Finding]:
    found = doctor.examine(machine)
    for one in found:
        # Each line for something missing says what does not work, and what to do.
        assert bool(one.without) == bool(one.fix) == (one.state != "ok"), one
    return {one.name: one for one in found if one.state != "ok"}


def test_a_machine_that_has_everything() -> None:
    assert lacking(Pretended()) == {}
    assert doctor.can_mount(doctor.examine(Pretended()))


@pytest.mark.parametrize(
    ("machine", "name", "state", "words"),
    [
        (without("/dev/fuse"), "/dev/fuse", "missing", "modprobe fuse"),
        (
            Pretended(refusals={"/dev/fuse": errno.EACCES}),
            *("/dev/fuse", "missing", "chmod 0666"),
        ),
        (
            Pretended(refusals={"/dev/fuse": errno.EPERM}),
            *("/dev/fuse", "missing", "--device /dev/fuse"),
        ),
        (
            Pretended(refusals={"/dev/fuse": errno.ENODEV}),
            *("/dev/fuse", "missing", "modprobe fuse"),
        ),
        (without("/usr/bin/fusermount3"), "fusermount3", "limited", "package fuse3"),
        (without("/etc/fuse.conf"), "user_allow_other", "limited", "write the line"),
        (
            Pretended(texts={"/etc/fuse.conf": "#user_allow_other\n"}),
            *("user_allow_other", "limited", "write the line"),
        ),
        (
            Pretended(texts={"/boot/config-6.12.1": "# CONFIG_FUSE_PASSTHROUGH\n"}),
            *("FUSE passthrough", "limited", "CONFIG_FUSE_PASSTHROUGH=y"),
        ),
        (
            Pretended(linux="6.8.0-45-generic"),
            *("FUSE passthrough", "limited", "Linux 6.9"),
        ),
        (Pretended(initial=False), "FUSE passthrough", "limited", "as root"),
        (
            Pretended(refusals={"io_uring": errno.EPERM}),
            *("io_uring", "limited", "seccomp"),
        ),
        (
            Pretended(
                refusals={"io_uring": errno.EPERM},
                texts={"/proc/sys/kernel/io_uring_disabled": "2\n"},
            ),
            *("io_uring", "limited", "sysctl kernel.io_uring_disabled=0"),
        ),
        (Pretended(frames=False), "pagemap", "limited", "as root"),
        (
            Pretended(refusals={"cachestat": errno.ENOSYS}),
            *("cachestat", "limited", "Linux 6.5"),
        ),
        (Pretended(kvm="/dev/kvm: gone"), "guest_memfd", "limited", "Linux 6.8"),
        (
            Pretended(limits={resource.RLIMIT_NOFILE: 1024}),
            *("open files", "limited", "ulimit -Hn"),
        ),
        (
            Pretended(effective=0, limits={resource.RLIMIT_MEMLOCK: 65536}),
            *("locked memory", "limited", "ulimit -Hl"),
        ),
        (
            Pretended(effective=0, namespaces="unshare: EPERM"),
            *("private tmpfs", "limited", "user.max_user_namespaces"),
        ),
        (
            # Of a user namespace, and not of the machine.
            Pretended(initial=False, limits={resource.RLIMIT_MEMLOCK: 65536}),
            *("locked memory", "limited", "ulimit -Hl"),
        ),
        (Pretended(writable=False), "sockets and logs", "limited", "XDG_RUNTIME_DIR"),
    ],
)
def test_what_is_lacking_and_how_to_get_it(
    machine: Pretended, name: str, state: str, words: str
) -> None:
    found = lacking(machine)[name]
    assert found.state == state
    assert words in found.fix
    assert doctor.can_mount(doctor.examine(machine)) is (state != "missing")


def test_a_plain_user_cannot_mount_without_fusermount3() -> None:
    machine = without("/usr/bin/fusermount3")
    machine.user, machine.effective = 1000, 0
    assert lacking(machine)["fusermount3"].state == "missing"
    machine.files["/usr/bin/fusermount3"] = result(stat.S_IFREG | 0o755)
    assert "not setuid" in lacking(machine)["fusermount3"].found


def test_a_plain_user_has_a_tmpfs_in_a_user_namespace() -> None:
    machine = Pretended(user=1000, effective=0)
    assert "private tmpfs" not in lacking(machine)


def test_root_is_warned_of_a_device_that_others_cannot_open() -> None:
    machine = Pretended()
    machine.files["/dev/fuse"] = result(stat.S_IFCHR | 0o600)
    assert lacking(machine)["/dev/fuse"].without == "other users cannot mount"


def test_this_machine_can_be_examined_and_nothing_changes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = os.listdir("/proc/self/fd")
    status = main(["doctor", "--json"])
    shown = msgspec.json.decode(capsys.readouterr().out, type=list[Finding])
    assert status == (0 if doctor.can_mount(shown) else 1)
    assert [one.name for one in shown] == [one.name for one in doctor.examine()]
    assert os.listdir("/proc/self/fd") == before
    assert main(["doctor"]) == status
    text = capsys.readouterr().out
    assert all(one.found in text for one in shown)


@pytest.mark.parametrize("width", [80, 70, 200])
def test_lines_fit_the_terminal(width: int) -> None:
    lacks_all = Pretended(
        effective=0,
        namespaces="unshare: unshare failed: Operation not permitted",
        refusals=dict.fromkeys(("/dev/fuse", "io_uring", "cachestat"), errno.EPERM),
        frames=False,
        kvm="/dev/kvm: No such file or directory",
        limits={resource.RLIMIT_NOFILE: 1024, resource.RLIMIT_MEMLOCK: 65536},
        writable=False,
        linux="6.8.0-45-generic-with-a-long-name",
        user=1000,
    )
    found = doctor.examine(lacks_all)
    text = as_text(found, width)
    assert max(map(len, text.splitlines())) <= width
    # Nothing is lost, and no option or path is cut in two.
    words = text.split()
    for one in found:
        for part in (one.found, one.without, one.fix):
            assert set(part.split()) <= set(words)
    # In a pipe each text is in one line.
    assert all(one.fix in as_text(found) for one in found)


def test_a_report_of_a_machine_without_a_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command for bug reports must not end with a traceback there."""

    def version(name: str) -> str:
        if name == "pyfuse3":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    parts = dict(report._parts([]))
    assert "pip install pyfuse3" in parts["inaccfs doctor"]
    assert parts["versions"].startswith("inaccfs ")


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        # By type of VM: what KVM_CAP_GUEST_MEMFD of one returns.
        ({0: 1}, ""),
        ({0: 0, 1: 1}, ""),
        ({0: 0}, "no VM of this KVM can have it"),
    ],
)
def test_a_vm_says_whether_it_can_have_guest_memfd(
    monkeypatch: pytest.MonkeyPatch, types: dict[int, int], expected: str
) -> None:
    """/dev/kvm of Linux 6.8 to 6.17 has the capability even where no VM can."""
    vms: dict[int, int] = {}

    def ioctl(fd: int, number: int, argument: int) -> int:
        if number == kvmcalls.KVM_CREATE_VM:
            if argument not in types:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            vm = os.open(os.devnull, os.O_RDONLY)
            vms[vm] = types[argument]
            return vm
        return vms.get(fd, 1)

    monkeypatch.setattr(kvmcalls, "DEVICE", os.devnull)
    monkeypatch.setattr(kvmcalls, "ioctl", ioctl)
    fds = os.listdir("/proc/self/fd")
    assert Machine().guest_memfd() == expected
    assert os.listdir("/proc/self/fd") == fds
