"""Tries every system call that could access or resize a file.

A row is one such call. `naming` finds the target that a user has named, `targets`
makes files of its kind, and `attempts` tries a row on one file, in a child process
(`children`). The rows are in `sizing`, `reading`, `writing`, `mapping`, `asking` and
`opening`, by kind of access. `table` lists them all; `report` prints the outcomes.

Nothing here knows about inaccfs: its mounts are probed like any other file system.
"""
