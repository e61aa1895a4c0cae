"""Outcomes in words: "ok", an errno, an exit, what a guest has read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inaccfs import errnos
from inaccfs.kvm.probe import guest
from inaccfs.kvm.probe.protocol import (
    Halt,
    Hypercall,
    MemoryFault,
    MmioRead,
    MmioWrite,
    OtherExit,
    PortIn,
    PortOut,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from inaccfs.kvm.probe.protocol import Exit


def of(call: Callable[..., object], *arguments: object) -> str:
    """ "ok", what *call* returns if that is not None or 0, or the errno it raises."""
    try:
        value = call(*arguments)
    except OSError as exc:
        return errnos.name(exc.errno)
    return "ok" if value is None or value == 0 else str(value)


def of_fd(call: Callable[..., int], *arguments: object) -> str:
    """ "fd", or the errno."""
    try:
        call(*arguments)
    except OSError as exc:
        return errnos.name(exc.errno)
    return "fd"


def of_exit(found: Exit) -> str:
    """An exit in a few words; numbers are hexadecimal, data is as in memory."""
    match found:
        case Halt():
            return "done"
        case PortOut(port, data):
            if port == guest.SAID:
                return f"read {int.from_bytes(data, 'little'):#x}"
            return f"out {port:#x} {data.hex()}"
        case PortIn(port, width):
            return f"in {port:#x} {width}"
        case MmioRead(gpa, width):
            return f"mmio read {gpa:#x} {width}"
        case MmioWrite(gpa, data):
            return f"mmio write {gpa:#x} {data.hex()}"
        case MemoryFault(number, flags, gpa, size):
            exit_words = f"exit {flags:#x} gpa {gpa:#x} size {size:#x}"
            return f"{errnos.name(number)} {exit_words}" if number else exit_words
        case Hypercall(number, arguments):
            return f"hypercall {number} {' '.join(map(hex, arguments))}"
        case OtherExit(number, reason):
            return f"{errnos.name(number)} {reason}" if number else reason
