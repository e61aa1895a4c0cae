"""The types of members that commands and events have in common."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

# Bytes of an offset are a loff_t: 2**63 of them, in pages of 4 KiB.
_LAST_PAGE: Final = (1 << 51) - 1

File = Annotated[
    str,
    Meta(
        min_length=1,
        description="a path from the mount's root that begins with `/` (for root and "
        "the owner), or an fdname",
    ),
]
FdName = Annotated[
    str,
    Meta(min_length=1, max_length=255, pattern="^[^/]", description="a name for an fd"),
]
Pgoff = Annotated[int, Meta(ge=0, le=_LAST_PAGE, description="a page of the file")]
FirstPage = Annotated[int, Meta(ge=0, le=_LAST_PAGE, description="the first page")]
EndPage = Annotated[
    int, Meta(ge=1, le=_LAST_PAGE + 1, description="the page after the last")
]
# In bytes where the semantics have that bug.
Start = Annotated[int, Meta(ge=0, description="the first page")]
End = Annotated[int, Meta(ge=0, description="the page after the last")]
PageCount = Annotated[int, Meta(ge=1, le=_LAST_PAGE, description="how many pages")]
Pfn = Annotated[int, Meta(ge=0, le=(1 << 52) - 1, description="a page frame number")]
ByteOffset = Annotated[
    int, Meta(ge=0, le=(1 << 63) - 1, description="in bytes of the file")
]
ByteCount = Annotated[int, Meta(ge=1, le=1 << 14, description="how many bytes")]
NotifierId = Annotated[int, Meta(ge=0, description="the number of a notifier")]
Sequence = Annotated[int, Meta(ge=0, description="that of the event")]


Row = Annotated[
    int, Meta(ge=0, description="where to begin: `next` of the previous reply")
]
PinsRow = Annotated[
    int | str, Meta(description="where to begin: 0, or `next` of the previous reply")
]
Limit = Annotated[int, Meta(ge=1, description="the most to return, up to 1000")]
