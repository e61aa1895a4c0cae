"""One row of the probe. tests/probe has the others, which test the kernel's files."""

from __future__ import annotations

import pytest

from inaccfs.probe import naming, table
from inaccfs.probe.attempts import attempt


# Idle threads of earlier tests have no lock that a child needs.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_memfd_is_mapped_and_read() -> None:
    name = "mmap MAP_SHARED PROT_READ"
    (row,) = [row for row in table.ROWS if row.name == name]
    assert attempt(naming.find("memfd"), row) == "ok, read zeros"
