"""Guest memory that is encrypted: what its file has, and what the guest reads."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from inaccfs.kvm import VM, EncryptionUnavailableError
from tests.unit.kvm_guests import MIB, PAGE, add_slot, shim

needs_cryptography = pytest.mark.skipif(
    importlib.util.find_spec("cryptography") is None, reason="needs cryptography"
)


def test_without_cryptography_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers", None)
    with (
        shim() as made,
        pytest.raises(
            EncryptionUnavailableError, match=r"pip install 'inaccfs\[encryption\]'$"
        ),
    ):
        VM(made, encryption=True)


@needs_cryptography
def test_encrypted_memory_reads_as_written_and_is_ciphertext_outside() -> None:
    with shim() as made, VM(made, encryption=True) as vm:
        file = made.memfd()
        add_slot(vm, file)
        vcpu, data = vm.create_vcpu(), os.urandom(2 * PAGE + 100)
        vcpu.write(PAGE - 33, data)
        assert vcpu.read(PAGE - 33, len(data)) == data
        assert data[:64] not in os.pread(file.fd, MIB, 0)


@needs_cryptography
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 16), (5, 3), (15, 2), (17, 40), (0, 1)]
)
def test_a_write_changes_its_blocks_and_no_others(offset: int, size: int) -> None:
    """XTS has blocks of 16 bytes. The rest of a block keeps its content."""
    with shim() as made, VM(made, encryption=True) as vm:
        file = made.memfd()
        add_slot(vm, file)
        vcpu, plain = vm.create_vcpu(), bytearray(os.urandom(PAGE))
        vcpu.write(0, bytes(plain))
        before = os.pread(file.fd, PAGE, 0)
        new = bytes(each ^ 255 for each in plain[offset : offset + size])
        vcpu.write(offset, new)
        plain[offset : offset + size] = new
        assert vcpu.read(0, PAGE) == plain
        after = os.pread(file.fd, PAGE, 0)
        changed = {
            at for at in range(256) if before[at * 16 :][:16] != after[at * 16 :][:16]
        }
        assert changed == set(range(offset // 16, (offset + size - 1) // 16 + 1))


@needs_cryptography
def test_memory_that_was_never_written_is_noise_also_after_a_punch() -> None:
    with shim() as made, VM(made, encryption=True) as vm:
        file = made.memfd()
        add_slot(vm, file)
        vcpu = vm.create_vcpu()
        noise = vcpu.read(0, PAGE)
        assert noise.count(0) < 64
        vcpu.write(0, b"a secret")
        file.punch(0, 1)
        assert vcpu.read(0, PAGE) == noise
        vcpu.write(0, b"another")
        assert vcpu.read(0, PAGE) == b"another" + noise[7:]


@needs_cryptography
def test_the_same_words_are_not_the_same_ciphertext() -> None:
    """The key is the VM's, the tweak the page's gfn."""
    with shim() as made, VM(made, encryption=True) as a, VM(made, encryption=True) as b:
        one, other = made.memfd(), made.memfd()
        add_slot(a, one)
        add_slot(b, other)
        a.create_vcpu().write(0, bytes(2 * PAGE))
        b.create_vcpu().write(0, bytes(PAGE))
        pages = {
            os.pread(one.fd, PAGE, 0),
            os.pread(one.fd, PAGE, PAGE),
            os.pread(other.fd, PAGE, 0),
            bytes(PAGE),
        }
        assert len(pages) == 4


@needs_cryptography
def test_shared_memory_is_not_encrypted() -> None:
    with shim() as made, VM(made, encryption=True, default_private=False) as vm:
        shared = bytearray(MIB)
        add_slot(vm, made.memfd(), shared=shared)
        vm.create_vcpu().write(0, b"for the host", private=False)
        assert shared.startswith(b"for the host")
