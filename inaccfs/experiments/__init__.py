"""Experiments: a question about the interface, and a program that answers it.

Each has a module with an `EXPERIMENT`, which `inaccfs experiment NAME` runs on real
mounts and the simulated KVM, and a page in docs/experiments/ with its output and what
that means. `catalogue` lists them; `lab` has their tools.
"""
