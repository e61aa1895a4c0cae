"""Rules of private and shared pages in one file, and of what proposals add to a file.

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
"""Which pages an event is about: KVM_FILTER_PRIVATE, KVM_FILTER_SHARED, or both."""

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

    # Where it is kept which pages are private: "nowhere", the file is of one kind; per
    # "vm" and gfn, which is the KVM's matter; or per "file" and page of it. Then the
    # command set-memory-attributes converts pages.
    attributes: ClassVar[Attributes]
    # What all pages of a new file are.
    initial: ClassVar[Initial]
    # The kinds that the events of punches and memory failures carry: "none"; what all
    # pages were at first, "initial"; what is "present" in the range; or always "both".
    kinds: ClassVar[EventKinds]
    # The kinds that the events of a conversion carry: what is "present" in the range,
    # the "opposite" of what it becomes, or "both".
    conversion_kinds: ClassVar[ConversionKinds]
    # Whether a conversion stores the attribute before or after the end of its bracket.
    stored: ClassVar[Stored]
    # What a conversion does as a whole or not at all: the "range"; or one "huge page"
    # after the other, so that an error leaves earlier ones converted.
    atomicity: ClassVar[Atomicity]
    # What a conversion to private looks for, and refuses with EAGAIN: all "references"
    # to its pages, pins among them; pins in the whole range first and then references,
    # "pins first"; or "none".
    pin_check: ClassVar[PinCheck]
    # What becomes of the content of converted pages: "unspecified"; "zeroed", where
    # they become shared; "preserved"; or the conversion of pages that have memory is
    # "refused" with EOPNOTSUPP.
    content: ClassVar[Content]
    # Whether get-pfn waits while a punch or a conversion of the file is under way.
    get_waits: ClassVar[bool]

    # --- huge pages -------------------------------------------------------------------

    # What the file consists of: "page"; or "huge page", of 2 MiB at least, that is
    # split while one of its pages is shared. Sizes and fallocate(2) are multiples.
    granule: ClassVar[Granule]
    # Whether a punch of pages that have references is "done", or "refused" with EAGAIN
    # after its start.
    pinned_punch: ClassVar[PinnedPunch]

    # --- bindings ---------------------------------------------------------------------

    # The errno of bind for pages that are bound already.
    overlap_errno: ClassVar[int]
    # Whether bind always binds "at once"; or may leave a binding "prepared", and
    # commit-bind puts it into effect, or refuses it.
    binding: ClassVar[Binding]

    # --- population, freezing, migration ----------------------------------------------

    # How a VMM fills a file: not at all, "none"; by "write", write(2) of whole shared
    # pages; by the command "populate", from a source; or the same, "populate in place",
    # where the content may be there already.
    population: ClassVar[Population]
    # Whether the command freeze is "unknown"; or fallocate(2) of a frozen file is EPERM
    # "before the checks" of its arguments, or "after the checks".
    frozen: ClassVar[Frozen]
    # Whether pages migrate: "never", or shared ones at the command migrate, within the
    # "bracket" of a punch.
    migration: ClassVar[Migration]
