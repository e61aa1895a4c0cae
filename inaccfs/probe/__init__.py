"""What a file lets userspace do: try each system call that could reach or resize it.

`naming` finds what a user has named, `targets` makes files of that kind, and `attempts`
tries one row on one of them in a child (`children`). The rows are in `sizing`,
`reading`, `writing`, `mapping`, `asking` and `opening`, by the way in which they go at
a file; `table` has all, and `report` shows what came of them.

Nothing here knows of inaccfs: a mount of it is probed as any other file system.
"""
