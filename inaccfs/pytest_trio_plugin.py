"""The fixtures of the pytest plugin for trio. Imported only with pytest-trio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_trio import trio_fixture  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import inaccfs
    from inaccfs.client import aio


@trio_fixture  # type: ignore[untyped-decorator]
async def inaccfs_aio_shim(inaccfs_mount: inaccfs.Mount) -> AsyncIterator[aio.Client]:
    """A client for trio, connected to `inaccfs_mount`; for async tests."""
    from inaccfs.client import aio

    async with aio.connect(inaccfs_mount.control) as shim:
        yield shim
