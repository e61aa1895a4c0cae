"""Rules about private and shared pages in one file, and about proposals.

A file of mainline's guest_memfd is private or shared as a whole. The proposals keep an
attribute for each page, and convert pages in place; others split huge pages, let the
VMM fill a file, freeze it, or move its pages. docs/semantics.md has the sources.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal, TypeAlias

PRIVATE: Final = "private"
SHARED: Final = "shared"
BOTH: Final = "both"

Kinds: TypeAlias = Literal["private", "shared", "both"]
"""The pages that an event concerns: KVM_FILTER_PRIVATE, KVM_FILTER_SHARED, or both."""

Attributes: TypeAlias = Literal["nowhere", "vm", "file"]
Initial: TypeAlias = Literal["private", "shared"]
EventKinds: TypeAlias = Literal["none", "initial", "present", "both"]
ConversionKinds: TypeAlias = Literal["present", "opposite", "both"]
Stored: TypeAlias = Literal["before the end", "after the end"]
Atomicity: TypeAlias = Literal["range", "huge page"]
PinCheck: TypeAlias = Literal["references", "pins first", "none"]
Content: TypeAlias = Literal["unspecified", "zeroed", "preserved", "refused"]
Granule: TypeAlias = Literal["page", "huge page"]
PinnedPunch: TypeAlias = Literal["done", "refused"]
Binding: TypeAlias = Literal["at once", "prepared"]
Population: TypeAlias = Literal["none", "write", "populate", "populate in place"]
Frozen: TypeAlias = Literal["unknown", "before the checks", "after the checks"]
Migration: TypeAlias = Literal["never", "bracket"]


class AttributeRules:
    """Base of `Semantics`: the rules of this module."""

    # --- private and shared pages -----------------------------------------------------

    # Where the attribute private or shared is kept: "nowhere", as all pages of a file
    # have one kind; in the "vm", per gfn, which only the KVM knows; or in the "file",
    # per page. Then the command set-memory-attributes converts pages.
    attributes: ClassVar[Attributes]
    # The attribute of all pages of a new file.
    initial: ClassVar[Initial]
    # The kinds in the events of punches and memory failures: "none"; the "initial" kind
    # of the file; the kinds "present" in the range; or always "both".
    kinds: ClassVar[EventKinds]
    # The kinds in the events of a conversion: those "present" in the range, the
    # "opposite" of the new kind, or "both".
    conversion_kinds: ClassVar[ConversionKinds]
    # Whether a conversion stores the attribute before or after the end of its bracket.
    stored: ClassVar[Stored]
    # What a conversion does as a whole or not at all: the "range"; or one "huge page"
    # after the other, so that an error leaves earlier ones converted.
    atomicity: ClassVar[Atomicity]
    # What makes a conversion to private fail with EAGAIN: "references" to its pages,
    # which include pins; "pins first" in the whole range, and then references; or
    # "none".
    pin_check: ClassVar[PinCheck]
    # The content of converted pages: "unspecified"; "zeroed" if they become shared;
    # "preserved"; or "refused": the conversion of pages with memory is EOPNOTSUPP.
    content: ClassVar[Content]
    # Whether get-pfn waits while a punch or a conversion of the file is in progress.
    get_waits: ClassVar[bool]

    # --- huge pages -------------------------------------------------------------------

    # The unit of a file's memory: "page"; or "huge page", of at least 2 MiB, which is
    # split while one of its pages is shared. Sizes and ranges of fallocate(2) must be
    # multiples of it.
    granule: ClassVar[Granule]
    # Whether a punch of pages that have references is "done", or "refused" with EAGAIN
    # after its start.
    pinned_punch: ClassVar[PinnedPunch]

    # --- bindings ---------------------------------------------------------------------

    # The errno of bind for pages that are already bound.
    overlap_errno: ClassVar[int]
    # Whether bind always binds "at once"; or may leave a binding "prepared", and
    # commit-bind puts it into effect, or refuses it.
    binding: ClassVar[Binding]

    # --- population, freezing, migration ----------------------------------------------

    # How a VMM fills a file: "none", it cannot; "write", by write(2) of whole shared
    # pages; "populate", by that command, from a source; or "populate in place", where
    # the content may already be in the pages.
    population: ClassVar[Population]
    # Whether the command freeze is "unknown"; or fallocate(2) of a frozen file is EPERM
    # "before the checks" of its arguments, or "after the checks".
    frozen: ClassVar[Frozen]
    # Whether pages migrate: "never"; or the command migrate moves shared ones within
    # the "bracket" of a punch.
    migration: ClassVar[Migration]
