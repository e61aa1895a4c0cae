"""Semantics: the rules of each version of the interface, or rules of your own.

    from inaccfs.semantics import V8

    class BeforeRules(V8):
        order = "before"

with `inaccfs mount --semantics ./mine.py:BeforeRules MOUNTPOINT`.
"""

from typing import Final

from inaccfs.semantics.proposals import (
    GuestMemfd72,
    HugetlbRfc,
    InPlaceNext,
    InPlaceV8,
    LiveUpdate,
    MigratableRfc,
    WriteV7,
)
from inaccfs.semantics.rules import Plan, Semantics, refused
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

__all__ = [
    "V7",
    "V8",
    "V9",
    "V10",
    "VERSIONS",
    "Bind",
    "GuestMemfd",
    "GuestMemfd68",
    "GuestMemfd72",
    "GuestMemfd612",
    "GuestMemfdMmap",
    "GuestMemfdShared",
    "HugetlbRfc",
    "InPlaceNext",
    "InPlaceV8",
    "LiveUpdate",
    "MigratableRfc",
    "Plan",
    "Semantics",
    "V8AsPosted",
    "WriteV7",
    "refused",
]

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
