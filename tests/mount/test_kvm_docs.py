"""The examples of docs/simulated-kvm.md and simulated-iommu.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.mount import support


def output_of(first: str, after: str, page: str = "simulated-kvm") -> str:
    """The output of the example that begins with *first*, up to *after*."""
    text = (support.TOP / f"docs/{page}.md").read_text()
    start = text.index(first)
    end = text.index(after, start)
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
    return done.stdout


def test_the_example_runs() -> None:
    found = output_of("    import mmap", "\n\n`inaccfs kvm demo`")
    assert re.fullmatch(r"Spte\(pfn=\d+, level=1\)\n", found)


def test_the_example_of_machine_code_runs() -> None:
    begin = "    import inaccfs\n    from inaccfs.kvm import Guest"
    found = output_of(begin, "\n\nIt needs the extra")
    assert found == "[PortOut(port=16, data=b'abcd'), Halt()]\n"


def test_the_example_of_the_iommu_runs() -> None:
    output = output_of("    import os", "\n\n## ", "simulated-iommu")
    ones, zeros, stats = output.splitlines()
    assert (ones, zeros) == (repr(b"\xff" * 4), repr(bytes(4)))
    assert "aborted=1, uses_after_change=0" in stats
