"""What all tests have in common: threads, short paths, and how reports are sent."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for calls that wait."""
    with ThreadPoolExecutor() as made:
        yield made


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a short name, for sockets: their paths have 107 bytes.

    The name of `tmp_path` contains the name of the test, and TMPDIR or --basetemp.
    """
    place = tempfile.gettempdir()
    short = "/tmp" if len(place) > 40 else place
    with tempfile.TemporaryDirectory(prefix="inaccfs-", dir=short) as path:
        yield Path(path)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Write what is no UTF-8 with escapes: pytest-xdist could not send it.

    Some tests have such names, and their logs are in the reports.
    """
    return _encodable((yield))


def _encodable(data: Any) -> Any:
    if isinstance(data, str):
        return data.encode(errors="backslashreplace").decode()
    if isinstance(data, dict):
        return {key: _encodable(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(_encodable, data))
    return data
