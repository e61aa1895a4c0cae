"""The file system that holds the memory: a tmpfs, or a directory on a hugetlbfs.

The v8 patch wraps one shmem file; a mount wraps a whole directory of them. `private`
makes a tmpfs that is in no mount namespace: no path leads to its bytes, and the kernel
frees it when the daemon ends, even after SIGKILL. `wrapping` takes a directory of the
user's, and `fallback` makes a directory for a user who may not create namespaces.
"""
