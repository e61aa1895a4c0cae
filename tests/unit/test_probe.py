"""One row of the probe. tests/probe has the others, which test the kernel's files."""

from __future__ import annotations

import errno

import pytest

from inaccfs.probe import calls, naming, table
from inaccfs.probe.attempts import attempt


# Idle threads of earlier tests have no lock that a child needs.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_memfd_is_mapped_and_read() -> None:
    name = "mmap MAP_SHARED PROT_READ"
    (row,) = [row for row in table.ROWS if row.name == name]
    assert attempt(naming.find("memfd"), row) == "ok, read zeros"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_where_nothing_can_be_traced_no_process_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As below strace -f: the row's child has a tracer, and has ended when it is seen.

    Its pid may be another process's by then.
    """

    def refuse() -> None:
        raise PermissionError(errno.EPERM, "it has a tracer")

    monkeypatch.setattr(calls, "ptrace_me", refuse)
    (row,) = [row for row in table.ROWS if row.name.startswith("ptrace")]
    assert attempt(naming.find("memfd"), row) == "not here: no ptrace"
