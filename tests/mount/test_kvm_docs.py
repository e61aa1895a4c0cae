"""The example of docs/simulated-kvm.md runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.mount import support


def test_the_example_runs() -> None:
    text = (support.TOP / "docs/simulated-kvm.md").read_text()
    start = text.index("    import mmap")
    end = text.index("\n\n`inaccfs kvm demo`", start)
    program = re.sub(r"^ {4}", "", text[start:end], flags=re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=support.ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=support.PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"Spte\(pfn=\d+, level=1\)\n", done.stdout)
