"""docs/recipes.md: the blocks that can run here, as they stand on the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.mount import support
from tests.mount.support import TOP

pytestmark = [pytest.mark.fuse]

PAGE: Final = (TOP / "docs" / "recipes.md").read_text()

# The end of each block's output.
ENDS: Final = (
    "cat has failed, as it should\n",
    "1 file on private tmpfs\n",
    "1 passed in",
)


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_each_block_has_an_end() -> None:
    assert len(blocks()) == len(ENDS)


@pytest.mark.parametrize(("block", "end"), [*zip(blocks(), ENDS, strict=True)])
def test_a_block_runs(block: str, end: str, tmp_path: Path) -> None:
    if reason := support.why_no_fuse():
        pytest.skip(reason)
    if "unshare" in block and subprocess.run(["unshare", "-Urm", "true"]).returncode:
        pytest.skip("this machine lets nobody make user namespaces")
    done = subprocess.run(
        ["sh", "-euc", block],
        cwd=tmp_path,
        env={
            **os.environ,
            **support.ENVIRONMENT,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert end in done.stdout
