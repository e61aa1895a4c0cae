"""What a KVM does with private memory, row by row: one row is one question.

The same rows are asked of a real KVM (`real`) and of the simulated one (`simulated`);
both are a `protocol.Kvm`. A row (`rows`) works on a `machine.Machine` and gives its
outcome in words. `guest` describes what a guest does, `assembler` makes machine code of
it. `table` runs the rows, each in a child, and compares; `report` prints.

Beside `simulated`, this package needs the standard library only: it also runs under an
emulated CPU, where imports are slow.
"""
