"""All versions that `--semantics` knows by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from inaccfs.semantics.proposals import (
    GuestMemfd72,
    HugetlbRfc,
    InPlaceNext,
    InPlaceV8,
    LiveUpdate,
    MigratableRfc,
    WriteV7,
)
from inaccfs.semantics.versions import (
    V7,
    V8,
    V9,
    V10,
    Bind,
    GuestMemfd,
    GuestMemfd68,
    GuestMemfd612,
    GuestMemfdMmap,
    GuestMemfdShared,
    V8AsPosted,
)

if TYPE_CHECKING:
    from inaccfs.semantics.rules import Semantics

VERSIONS: Final[tuple[type[Semantics], ...]] = (
    V7,
    V8,
    V8AsPosted,
    V9,
    V10,
    Bind,
    GuestMemfd68,
    GuestMemfd612,
    GuestMemfd,
    GuestMemfdMmap,
    GuestMemfdShared,
    WriteV7,
    GuestMemfd72,
    InPlaceV8,
    InPlaceNext,
    HugetlbRfc,
    MigratableRfc,
    LiveUpdate,
)
"""In the order of history."""
