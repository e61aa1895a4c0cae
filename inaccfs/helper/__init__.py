"""The helper: a process for work that may hang, must be killable, or uses the mount.

The daemon must not do three things itself:

- allocate much memory: in Linux 6.18 only a fatal signal interrupts a large
  fallocate(2) on a tmpfs, and a signal that is fatal to a thread kills the whole
  daemon;
- make a request of its own mount: if the daemon is killed while a thread waits for the
  reply, the thread keeps /dev/fuse open, so neither the connection nor the thread ends;
- close a file of a foreign FUSE file system: close(2) sends FLUSH and waits for the
  reply, and no signal ends that wait.

So *workers* do these: processes without /dev/fuse and without the backing, which the
*helper* forks one by one. The daemon forks the helper first of all, before it has
secrets, threads or a mount. A worker gets the fd that it needs with each request, and
closes it afterwards. All these processes die with the daemon, and are undumpable as it
is.

    daemon  (pool.py, tasks.py)  -- one socket --> helper (process.py)
       |                                             | fork
       +------- a socket for each worker ------> worker (process.py)
"""
