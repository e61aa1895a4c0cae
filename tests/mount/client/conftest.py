"""A file of a mount, a client, and the file as the client has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import inaccfs
from tests.mount.client.files import guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.client import Client, File


@pytest.fixture
def fd(mount: inaccfs.Mount) -> Iterator[int]:
    with guest(mount) as made:
        yield made


@pytest.fixture
def shim(mount: inaccfs.Mount, fd: int) -> Iterator[Client]:
    with inaccfs.connect(mount.path) as made:
        yield made


@pytest.fixture(params=["fd", "path"])
def memory(request: pytest.FixtureRequest, shim: Client, fd: int) -> Iterator[File]:
    with shim.file(fd if request.param == "fd" else "/guest0") as made:
        yield made
