"""Lifetimes: which of files, VMs, processes and descriptors keeps another alive."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from inaccfs import syscalls
from inaccfs.kvm.probe import words
from inaccfs.kvm.probe.asking import Rows
from inaccfs.kvm.probe.machine import PAGES, T
from inaccfs.kvm.uapi import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.kvm.probe.machine import Machine

ROWS: Final = Rows("life")

_LARGE: Final = 64 << 20


def _in_child(work: Callable[[], str]) -> str:
    """The outcome of *work* in a child process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, work().encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as file:
        return file.read().decode()


@ROWS.row("A forked child has the file; its parent closes it; the child ends.")
def fork_holds(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    yield machine.close(fd)
    yield machine.read()
    os.close(writer)
    os.waitpid(pid, 0)
    yield machine.read()


@ROWS.row("A forked child allocates and punches: what the guest reads.")
def fork_punches(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    yield _in_child(lambda: machine.allocate(fd, 4, 4))
    yield machine.cached(fd)
    yield _in_child(lambda: machine.punch(fd))
    yield machine.read()


@ROWS.row("The file goes to another descriptor by dup2(2): a punch by it.")
def dup_punches(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    other = os.dup(fd)
    yield machine.write(T, 0x77)
    yield machine.close(fd)
    yield machine.punch(other)
    yield machine.read()


@ROWS.row("The file goes over a socket and back, and makes a slot.")
def over_a_socket(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    half = machine.anonymous()
    one, other = socket.socketpair()
    with one, other:
        socket.send_fds(one, [b"x"], [fd])
        _, (received,), _, _ = socket.recv_fds(other, 1, 1)
    machine.close(fd)
    yield machine.region(fd=received, at=half.address)
    yield from machine.to_private_if_possible(T, PAGES)
    yield machine.write(T, 0x77)
    yield machine.read()


@ROWS.row("The VM is closed: pages of its file, allocate, punch, size, close.")
def vm_closed_first(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    machine.vm.close()
    yield machine.cached(fd)
    yield machine.allocate(fd, 0, 4)
    yield machine.cached(fd)
    yield machine.punch(fd, 0, PAGES)
    yield machine.cached(fd)
    yield f"{os.fstat(fd).st_size:#x} bytes"
    yield machine.close(fd)


@ROWS.row("The file is closed with its slot there, and then the VM.")
def file_closed_first(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    yield machine.close(fd)
    yield words.of(machine.vm.close)


@ROWS.row("A file that is in no slot is closed, allocated; another one is fresh.")
def never_in_a_slot(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    yield machine.allocate(fd, 0, PAGES)
    yield machine.cached(fd)
    yield machine.close(fd)
    yield machine.cached(machine.create())


@ROWS.row("The slot is deleted: the file keeps its pages; they are punched.")
def slot_deleted_first(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    yield machine.delete()
    yield machine.cached(fd)
    yield machine.punch(fd, 0, PAGES)
    yield machine.cached(fd)


@ROWS.row("The file is closed and one of the same number is made: the slot's memory.")
def number_again(machine: Machine) -> Iterator[object]:
    fd = machine.closable()
    yield machine.write(T, 0x77)
    yield machine.close(fd)
    other = machine.create()
    yield "the same number" if other == fd else "another number"
    yield machine.read()


@ROWS.row("RLIMIT_FSIZE and RLIMIT_MEMLOCK of a page: create and allocate 16.")
def limits_of_size(machine: Machine) -> Iterator[object]:
    # An exceeded RLIMIT_FSIZE is a signal.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_MEMLOCK):
        resource.setrlimit(limit, (PAGE_SIZE, PAGE_SIZE))
    fd = machine.create()
    yield machine.allocate(fd, 0, PAGES)
    yield machine.cached(fd)


@ROWS.row("No descriptor is left: KVM_CREATE_GUEST_MEMFD.", low=False)
def limit_of_descriptors(machine: Machine) -> Iterator[object]:
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    yield words.of_fd(machine.create)


@ROWS.row("A large allocation is interrupted by a signal: what the file keeps.")
def signal_while_allocating(machine: Machine) -> Iterator[object]:
    pages = 4 * _LARGE // PAGE_SIZE
    fd = machine.create(pages)
    main = threading.get_ident()

    def interrupt() -> None:
        # Send it again and again: the first signal may come before the call.
        while True:
            time.sleep(0.005)
            signal.pthread_kill(main, signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, lambda *_: None)
    threading.Thread(target=interrupt, daemon=True).start()
    mode = syscalls.FALLOC_FL_KEEP_SIZE
    outcome = words.of(syscalls.fallocate, fd, mode, 0, pages * PAGE_SIZE)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    yield outcome
    found = machine.kvm.cached(fd)
    yield "all" if found == pages else "not all"


@ROWS.row("A hundred VMs are made, each with a file and a slot, and closed.")
def many_vms(machine: Machine) -> Iterator[object]:
    for _ in range(100):
        other = machine.another()
        fd, _ = other.memory()
        os.close(fd)
        other.vm.close()
    yield "done"


@ROWS.row("execveat(2) of the file.")
def execute_file(machine: Machine) -> Iterator[object]:
    fd = machine.create()
    yield words.of(os.execve, fd, ["x"], {})
