"""Compares what KVMs do with private memory. A row asks one question of a KVM.

The same rows run on a real KVM (`real`) and on the simulated one (`simulated`); both
are a `protocol.Kvm`. A row (`rows`) uses a `machine.Machine` and returns its outcome in
words. `guest` describes what a guest does; `assembler` turns that into machine code.
`table` runs the rows, each in a child process, and compares; `report` prints.

Except for `simulated`, this package needs only the standard library: it also runs under
an emulated CPU, where imports are slow.
"""
