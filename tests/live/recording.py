"""python -m tests.live.recording [FILE]: ask the emulated KVM, and write the file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from inaccfs.errors import InaccfsError
from inaccfs.kvm import probe
from inaccfs.kvm.live.emulated import Emulated
from inaccfs.kvm.probe import recorded
from inaccfs.kvm.probe.rows import ROWS


def main() -> int:
    """Record; print the kernel's version and the time that it took."""
    own = Path(probe.__file__).parent / "recorded.json"
    path = Path(sys.argv[1]) if sys.argv[1:] else own
    start = time.monotonic()
    try:
        emulated = Emulated()
        answers = emulated.answers(ROWS)
    except InaccfsError as exc:
        print(exc, file=sys.stderr)
        return 1
    about = {"kernel": emulated.release, "source": emulated.kernel.source}
    recorded.write(path, ROWS, answers, about)
    print(
        f"{len(ROWS)} rows of {emulated.kernel.source}, in "
        f"{time.monotonic() - start:.1f} s: {path}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
