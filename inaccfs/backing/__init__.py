"""The file system that holds the memory: a tmpfs, or a directory on a hugetlbfs.

The v8 patch wraps one shmem file; a mount wraps a whole directory of them. `private`
makes a tmpfs that hangs in no mount namespace, so no path leads to its bytes, and it
goes with the daemon, even after SIGKILL. `wrapping` takes a directory of the user's,
and `fallback` makes one for a user who may not create namespaces.
"""
