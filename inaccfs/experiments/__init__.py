"""Experiments: a question about the interface, and a program that answers it.

Each is a module with an `EXPERIMENT`, run on real mounts and the simulated KVM by
`inaccfs experiment NAME`, and a page in docs/experiments/ with its output and what that
means. `catalogue` lists them; `lab` is what they work with.
"""
