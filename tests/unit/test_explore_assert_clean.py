"""assert_clean() fails a test with the schedule that it has found."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from inaccfs.errors import OptionError
from inaccfs.explore import assert_clean
from inaccfs.explore.scenarios import SCENARIOS, Mapped
from inaccfs.semantics import V8, V10
from tests.explore_page import PAGE

if TYPE_CHECKING:
    from pathlib import Path


def test_assert_clean() -> None:
    for rules in (V10(), V10, "v10"):
        assert_clean(Mapped, rules)
    with pytest.raises(AssertionError, match=r"(?s)use-after-free.*replay "):
        assert_clean(Mapped, V8())
    with pytest.raises(AssertionError, match="which are not all"):
        assert_clean(SCENARIOS["two-vcpus"], "v10", seconds=0.01)
    with pytest.raises(OptionError, match="unknown KVM 'x': there are kvm, "):
        assert_clean(Mapped, "v10", kvm="x")


def test_a_test_of_another_project_fails_with_the_schedule(tmp_path: Path) -> None:
    """The sample of the page, under rules that let it pass and rules that do not."""
    [text] = re.findall(
        r"```python\n(from inaccfs[^`]*assert_clean.*?)```", PAGE.read_text(), re.DOTALL
    )
    wrong = text[text.index("def test_") :].replace("guest_memfd", "v8")
    wrong = wrong.replace("def test_", "def test_not_").replace(
        "SharedFile,", "SCENARIOS['mapped'],"
    )
    path = tmp_path / "test_mine.py"
    path.write_text(f"from inaccfs.explore.scenarios import SCENARIOS\n{text}\n{wrong}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert "1 failed, 1 passed" in done.stdout
    assert "use-after-free: vcpu uses page 0" in done.stdout
    assert re.search(r"replay [0-9a-f]{8}-\w+", done.stdout)
    # The output has the schedule, and no traceback of the search.
    assert "pytesting.py" not in done.stdout.partition("short test summary")[0]
