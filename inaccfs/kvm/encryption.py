"""Private memory as confidential hardware keeps it: encrypted, with a key per VM.

AES-XTS with a page as the unit, and the page's gfn as the tweak. XTS encrypts each
block of 16 bytes by itself once the tweak is known, so a write changes the blocks that
it touches and no others. Only those are read, changed and written.

A page that was never written decrypts to noise, as on hardware.
"""

from __future__ import annotations

import importlib
import os
import threading
from typing import TYPE_CHECKING, Any, Final

from inaccfs.errors import InaccfsError
from inaccfs.kvm.uapi import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    import mmap

    from inaccfs.kvm.memory import Place

_BLOCK: Final = 16


class EncryptionUnavailableError(InaccfsError, ImportError):
    """The package cryptography is not installed."""


class EncryptedMemory:
    """As `inaccfs.kvm.memory.PlainMemory`, but the file's memory has ciphertext."""

    def __init__(self) -> None:
        """Raises `EncryptionUnavailableError`."""
        try:
            ciphers = importlib.import_module("cryptography.hazmat.primitives.ciphers")
        except ImportError:
            raise EncryptionUnavailableError(
                "encrypted guests need the package cryptography: "
                "pip install 'inaccfs[encryption]'"
            ) from None
        self._ciphers: Final[Any] = ciphers
        # AES-256: XTS has two keys.
        self._key: Final = ciphers.algorithms.AES(os.urandom(64))
        # A write of part of a block reads and writes the whole block; in hardware the
        # memory controller does that for one cache line at a time.
        self._lock: Final = threading.Lock()

    def read(self, place: Place, size: int) -> bytes:
        """As `PlainMemory.read`."""
        memory, position, gpa, _ = place
        with self._lock:
            return b"".join(
                self._decrypted(memory, page, gfn, first, last)
                for page, gfn, first, last in _pages(position, gpa, size)
            )

    def write(self, place: Place, data: memoryview) -> None:
        """As `PlainMemory.write`."""
        memory, position, gpa, _ = place
        done = 0
        with self._lock:
            for page, gfn, first, last in _pages(position, gpa, len(data)):
                size = last - first
                self._encrypt(memory, page, gfn, first, data[done : done + size])
                done += size

    def _decrypted(
        self, memory: mmap.mmap, page: int, gfn: int, first: int, last: int
    ) -> bytes:
        """Bytes *first* to *last* of the page that begins at *page* in the memory."""
        start, end = _blocks(first, last)
        # These zeros only advance the cipher to the right block.
        secret = bytes(start) + memory[page + start : page + end]
        plain: bytes = self._cipher(gfn).decryptor().update(secret)
        return plain[first:last]

    def _encrypt(
        self, memory: mmap.mmap, page: int, gfn: int, first: int, data: memoryview
    ) -> None:
        last = first + len(data)
        start, end = _blocks(first, last)
        head = (
            self._decrypted(memory, page, gfn, start, first) if start < first else b""
        )
        tail = self._decrypted(memory, page, gfn, last, end) if last < end else b""
        plain = bytes(start) + head + data + tail
        secret: bytes = self._cipher(gfn).encryptor().update(plain)
        memory[page + start : page + end] = secret[start:end]

    def _cipher(self, gfn: int) -> Any:  # noqa: ANN401 - of a package that may be absent
        tweak = gfn.to_bytes(_BLOCK, "little")
        return self._ciphers.Cipher(self._key, self._ciphers.modes.XTS(tweak))


def _blocks(first: int, last: int) -> tuple[int, int]:
    """The bounds of the cipher blocks that contain these bytes."""
    return first // _BLOCK * _BLOCK, -(-last // _BLOCK) * _BLOCK


def _pages(position: int, gpa: int, size: int) -> list[tuple[int, int, int, int]]:
    """For each page: its position in the file, its gfn, and a range of its bytes."""
    found = []
    while size:
        first = gpa % PAGE_SIZE
        step = min(size, PAGE_SIZE - first)
        found.append((position - first, gpa >> PAGE_SHIFT, first, first + step))
        position, gpa, size = position + step, gpa + step, size - step
    return found
