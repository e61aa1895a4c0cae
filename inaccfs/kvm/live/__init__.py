"""A real KVM with private memory on any x86-64 machine: a small kernel under QEMU.

`kernel` builds Debian's linux-source with KVM_SW_PROTECTED_VM, once, into a cache
(`places`); `boot` runs a command in it, under QEMU's TCG, as any user and without
/dev/kvm.
"""
