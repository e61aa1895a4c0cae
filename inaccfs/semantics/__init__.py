"""Semantics: the rules of a version of the interface, and of one of your own.

    from inaccfs.semantics import V8

    class BeforeRules(V8):
        order = "before"

with `inaccfs mount --semantics ./mine.py:BeforeRules MOUNTPOINT`.
"""

from inaccfs.semantics.rules import Plan, Semantics, refused
from inaccfs.semantics.versions import (
    V7,
    V8,
    V9,
    V10,
    VERSIONS,
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
    "GuestMemfd612",
    "GuestMemfdMmap",
    "GuestMemfdShared",
    "Plan",
    "Semantics",
    "V8AsPosted",
    "refused",
]
