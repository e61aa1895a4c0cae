"""The helper: one process for whatever may hang, must be killable, or asks the mount.

The daemon must not do three things itself:

- allocate much memory: in Linux 6.18 a large fallocate(2) on a tmpfs stops for fatal
  signals only, and what is fatal for a thread is fatal for the daemon;
- ask its own mount anything: a thread that waits for an answer when the daemon is
  killed keeps /dev/fuse open, so the connection never ends, nor does the thread;
- close a file of somebody else's FUSE file system: close(2) sends FLUSH and waits for
  the answer, and no signal ends that wait.

So processes without /dev/fuse and without the backing do them: *workers*, forked one by
one by the *helper*. The helper is forked from the daemon before that has anything to
hide, threads to lose, or a mount. A worker gets what it needs with each request, and
gives it back. All of them die with the daemon, and are undumpable as it is.

    daemon  (pool.py, tasks.py)  -- one socket --> helper (process.py)
       |                                             | fork
       +------- a socket for each worker ------> worker (process.py)
"""
