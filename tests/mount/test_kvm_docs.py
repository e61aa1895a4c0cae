"""The examples of docs/simulated-kvm.md and simulated-iommu.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.mount import support


def test_the_example_runs() -> None:
    text = (support.TOP / "docs/simulated-kvm.md").read_text()
    start = text.index("    import mmap")
    end = text.index("\n\n`inaccfs kvm demo`", start)
    done = run(text[start:end])
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"Spte\(pfn=\d+, level=1\)\n", done.stdout)


def test_the_example_of_the_iommu_runs() -> None:
    text = (support.TOP / "docs/simulated-iommu.md").read_text()
    start = text.index("    import os")
    done = run(text[start : text.index("\n\n## ", start)])
    assert (done.returncode, done.stderr) == (0, "")
    ones, zeros, stats = done.stdout.splitlines()
    assert (ones, zeros) == (repr(b"\xff" * 4), repr(bytes(4)))
    assert "aborted=1, uses_after_change=0" in stats


def run(text: str) -> subprocess.CompletedProcess[str]:
    program = re.sub(r"^ {4}", "", text, flags=re.MULTILINE)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=support.ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=support.PATIENCE,
    )
