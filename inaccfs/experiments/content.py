"""Row 6: what a page contains after a conversion, and which assumptions fail."""

from __future__ import annotations

import mmap
import os
from collections import Counter
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.experiments import parts
from inaccfs.experiments.lab import HUGE_ONLY, IN_FILES, Experiment
from inaccfs.kvm import KVM_MEM_PRIVATE, VM, Vmm
from inaccfs.kvm.encryption import EncryptionUnavailableError
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.experiments.lab import Bench, Lab


# The data that is written, and the names of data that is read.
_PUBLIC: Final = b"public".ljust(PAGE_SIZE, b".")
_SECRET: Final = b"secret".ljust(PAGE_SIZE, b"!")
_NAMES: Final = {_PUBLIC: "public", _SECRET: "secret", bytes(PAGE_SIZE): "zeros"}
_MODES: Final = ("plain", "encrypted")


class _Guest(NamedTuple):
    """A guest of one page, and its VMM's fd."""

    vm: VM
    fd: int

    def read(self, *, private: bool) -> str:
        return _name(self.vm.create_vcpu().read(0, PAGE_SIZE, private=private))

    def write(self, data: bytes) -> None:
        self.vm.create_vcpu().write(0, data)


def _name(data: bytes) -> str:
    return _NAMES.get(data, "noise")


def _discard(guest: _Guest, private: bool) -> None:
    """Discard the half that is no longer used, as QEMU does."""
    Vmm(guest.vm).convert(0, PAGE_SIZE, private=private)


def _keep(guest: _Guest, private: bool) -> None:
    Vmm(guest.vm, discard=False).convert(0, PAGE_SIZE, private=private)


def _punch(guest: _Guest, private: bool) -> None:
    """Punch the page itself, where there is only one copy."""
    guest.vm.set_memory_attributes(0, PAGE_SIZE, private=private)
    parts.punch(guest.fd, 1)


# "in place" is like guest_memfd with INIT_SHARED: the VMM maps the same memory that is
# the guest's private memory.
_POLICIES: Final = (
    ("two halves", "punch", _discard),
    ("two halves", "keep", _keep),
    ("in place", "punch", _punch),
    ("in place", "keep", _keep),
)


class _Seen(NamedTuple):
    """The data that is read after each of three conversions."""

    # Read by the guest, after the VMM wrote `public`.
    private: str
    # Read by both, after the guest wrote `secret`.
    shared: str
    # Read by root from the file, at the same time.
    file: str
    # Read by the guest, after conversion back without any write.
    back: str


_HEAD: Final = ("to private: guest", "to shared: both", "in the file", "back: guest")


def _watch(
    bench: Bench,
    memory: str,
    policy: Callable[[_Guest, bool], None],
    *,
    encryption: bool,
) -> _Seen | None:
    """Convert to private, to shared, and back; None if cryptography is missing."""
    allocates = bench.shim.query_semantics().allocates
    with ExitStack() as stack:
        fd = bench.shim.memfd_create("guest", size=PAGE_SIZE)
        stack.callback(os.close, fd)
        with bench.shim.file(fd) as opened:
            memory_fd = opened.get_memory()
        stack.callback(os.close, memory_fd)
        file = stack.enter_context(closing(mmap.mmap(memory_fd, PAGE_SIZE)))
        half = stack.enter_context(closing(mmap.mmap(-1, PAGE_SIZE)))
        shared = file if memory == "in place" else half
        try:
            vm = stack.enter_context(
                VM(bench.shim, default_private=True, encryption=encryption)
            )
        except EncryptionUnavailableError:
            return None
        vm.set_user_memory_region(
            0, 0, PAGE_SIZE, private_fd=fd, shared=shared, flags=KVM_MEM_PRIVATE
        )
        guest = _Guest(vm, fd)

        def convert(*, private: bool) -> None:
            policy(guest, private)
            if private and not allocates:
                parts.allocate(fd, 1)

        vm.set_memory_attributes(0, PAGE_SIZE, private=False)
        shared[:] = _PUBLIC
        convert(private=True)
        private = guest.read(private=True)
        guest.write(_SECRET)
        convert(private=False)
        both = guest.read(private=False)
        assert both == _name(shared[:])
        found = _name(file[:])
        convert(private=True)
        return _Seen(private, both, found, guest.read(private=True))


# Assumptions of a client, which are wrong if it reads anything else.
_CLIENTS: Final[tuple[tuple[str, str, Callable[[_Seen], str]], ...]] = (
    ("zero, to private", "zeros", lambda seen: seen.private),
    ("zero, to shared", "zeros", lambda seen: seen.shared),
    ("preserve, to private", "public", lambda seen: seen.private),
    ("preserve, to shared", "secret", lambda seen: seen.shared),
    ("preserve, there and back", "secret", lambda seen: seen.back),
)


def _run(lab: Lab) -> None:
    before: list[list[_Seen | None]] = []
    for semantics in lab.semantics:
        with lab.bench(semantics, size="1m") as bench:
            seen = [
                [
                    _watch(bench, memory, policy, encryption=mode == "encrypted")
                    for memory, _, policy in _POLICIES
                ]
                for mode in _MODES
            ]
        if seen == before:
            lab.say(f"\n{bench.semantics}: the same")
        else:
            if before:
                lab.say()
            _show(lab, bench.semantics, seen)
        before = seen


def _show(lab: Lab, semantics: str, seen: list[list[_Seen | None]]) -> None:
    absent = ["needs cryptography"] * len(_HEAD)
    rows = [
        (memory, name, mode, *(found or absent))
        for at, (memory, name, _) in enumerate(_POLICIES)
        for mode, found in zip(_MODES, (column[at] for column in seen), strict=True)
    ]
    lab.say(f"{semantics}:")
    lab.table(["memory", "policy", "guest", *_HEAD], rows)
    lab.say()
    head = ["a client that assumes"]
    for mode in _MODES:
        head += [f"{mode}: right in", "or else gets"]
    lab.table(
        head,
        [
            (what, *_judge(expected, read, seen[0]), *_judge(expected, read, seen[1]))
            for what, expected, read in _CLIENTS
        ],
    )


def _judge(
    expected: str, read: Callable[[_Seen], str], seen: list[_Seen | None]
) -> tuple[str, str]:
    """Under how many policies a client is right, and what it reads under the others."""
    got = [read(each) for each in seen if each is not None]
    wrong = sorted(Counter(what for what in got if what != expected).items())
    text = ", ".join(what + f" {times}x" * (times > 1) for what, times in wrong)
    return f"{got.count(expected)} of {len(got)}", text or "-"


EXPERIMENT: Final = Experiment(
    name="content",
    question="What does a page contain after a conversion, and can clients rely on it?",
    run=_run,
    semantics=("v8", "guest_memfd"),
    misfits=(HUGE_ONLY, IN_FILES),
)
