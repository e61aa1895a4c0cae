"""Minimal systems, made by debootstrap; only for tests/packaging/run."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.packaging.roots import RELEASES, Root

if TYPE_CHECKING:
    from collections.abc import Iterator

# They take minutes and download packages, so tests/run leaves them out.
collect_ignore_glob = [] if "INACCFS_PACKAGING" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session", params=RELEASES)
def root(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Root]:
    """A minimal system of one release, with the packages that build inaccfs."""
    if os.geteuid() != 0:
        pytest.skip("only root can chroot")
    if shutil.which("debootstrap") is None:
        pytest.skip("no debootstrap: apt-get install debootstrap")
    made = Root.make(request.param, tmp_path_factory.mktemp(request.param))
    yield made
    made.remove()
