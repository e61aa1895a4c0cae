"""inaccfs without idle threads: trio ends a thread as soon as it has nothing to do.

Otherwise a census has to wait until a thread was idle for ten seconds.
"""

from __future__ import annotations

import sys

from trio._core import _thread_cache

from inaccfs.cli import main

if __name__ == "__main__":
    assert _thread_cache.IDLE_TIMEOUT
    _thread_cache.IDLE_TIMEOUT = 0
    sys.exit(main(sys.argv[1:]))
