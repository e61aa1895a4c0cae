"""The programs of guests: each is a few operations on guest-physical addresses.

A real CPU runs the machine code that `assembler` makes of them. A simulated vCPU may
run the same code, or execute the operations directly. After the last one the guest
halts.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

SAID: Final = 0x10
"""The port to which a guest writes what it has read."""

STARTED: Final = 0x14
"""The port to which a guest writes that it is about to spin."""

OUT: Final = 0x11
"""The port of `Outs`."""

IN: Final = 0x12
"""The port of `Ins`."""

END: Final = 0x13
"""The port to which a guest writes in place of halting, where it may not halt."""


class Read(NamedTuple):
    """Read *width* bytes (1, 2 or 4) at *gpa*, and say them."""

    gpa: int
    width: int = 4


class Write(NamedTuple):
    """Write *value*, *width* bytes (1, 2 or 4), at *gpa*."""

    gpa: int
    value: int
    width: int = 4


class Exchange(NamedTuple):
    """Exchange four bytes at *gpa* with *value* by one locked instruction; say them."""

    gpa: int
    value: int


class OrPage(NamedTuple):
    """Say the 1024 words of the page at *gpa*, or-ed."""

    gpa: int


class Copy(NamedTuple):
    """Copy *words* of four bytes from *source* to *target* by one rep movsd."""

    source: int
    target: int
    words: int


class Outs(NamedTuple):
    """Write four bytes at *gpa* to port `OUT` by outsd: KVM reads the memory itself."""

    gpa: int


class Ins(NamedTuple):
    """Read four bytes from port `IN` to *gpa* by insd: KVM writes the memory itself."""

    gpa: int


class Jump(NamedTuple):
    """Go on at *gpa*; the program ends there."""

    gpa: int


class CallHypervisor(NamedTuple):
    """A hypercall with up to four arguments; say what it returns."""

    number: int
    arguments: tuple[int, ...] = ()


class Start(NamedTuple):
    """Write to port `STARTED`."""


class SpinWhile(NamedTuple):
    """Read four bytes at *gpa* while they are *value*; then say them."""

    gpa: int
    value: int


class SpinWriting(NamedTuple):
    """Write *value* at *gpa* and read it back, until it is another; then say that."""

    gpa: int
    value: int


Operation: TypeAlias = (
    Read
    | Write
    | Exchange
    | OrPage
    | Copy
    | Outs
    | Ins
    | Jump
    | CallHypervisor
    | Start
    | SpinWhile
    | SpinWriting
)
