"""Fixtures of the tests that mount for real."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mount import support

if TYPE_CHECKING:
    from collections.abc import Iterator

    import inaccfs


@pytest.fixture(autouse=True)
def _fuse() -> None:
    if reason := support.why_no_fuse():
        pytest.skip(reason)


@pytest.fixture
def mount() -> Iterator[inaccfs.Mount]:
    """A mount with a daemon of its own, asserted to end well."""
    with support.mounted() as made:
        yield made


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a short name: the paths of sockets are short."""
    with tempfile.TemporaryDirectory(prefix="inaccfs-") as path:
        yield Path(path)


@pytest.fixture
def memory(scratch: Path) -> Iterator[Path]:
    """A tmpfs of the test's own, to wrap or to compare with."""
    with support.tmpfs(scratch / "memory") as path:
        yield path
