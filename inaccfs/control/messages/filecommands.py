"""What can be asked about private and shared pages, and the content of files."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from inaccfs.control.messages.commands import Command, PutExtent
from inaccfs.control.messages.fields import (
    ByteCount,
    ByteOffset,
    FdName,
    File,
    Limit,
    NotifierId,
    PageCount,
    Pfn,
    Pgoff,
)
from inaccfs.control.messages.results import Data, Frames, MemoryAttributes, Populated


class SetMemoryAttributes(Command, frozen=True, kw_only=True):
    """KVM_SET_MEMORY_ATTRIBUTES2: makes pages private or shared, for all VMs.

    Every process that has the file open may use it. Where the whole range already is as
    wanted no event is sent. EINVAL past the end; EPERM for a frozen file; EOPNOTSUPP in
    semantics that keep attributes per VM, or nowhere; ENOMEM if the file would have
    more than a million ranges. To private it is EAGAIN if a page has references, and
    that page is `error.offset`. Nothing is converted then, but where the semantics
    convert one huge page after the other: those before `error.offset`.
    """

    name: ClassVar[str] = "set-memory-attributes"

    file: File
    offset: Pgoff
    count: PageCount
    private: Annotated[bool, Meta(description="else they become shared")]


class QueryMemoryAttributes(Command, frozen=True, kw_only=True):
    """Tells which pages of a file are private: ranges that cover all of it, in order.

    Neighbours with the same attribute are one range. Where there are more than 1000
    the reply has `next` beside `return`. In semantics that do not keep attributes in
    the file it is one range, as the file began.
    """

    name: ClassVar[str] = "query-memory-attributes"
    returns: ClassVar[Any] = list[MemoryAttributes]

    file: File
    start: Annotated[
        int, Meta(ge=0, description="the page to begin at: `next` of the page before")
    ] = 0
    limit: Limit | None = None


class PopulatePages(Command, frozen=True, kw_only=True):
    """kvm_gmem_populate(): gives private pages their first content, from `source`.

    Without `source` the content is there already, where the semantics know that: the
    pages are only allocated. Returns how many pages have been done, and fails only if
    the first could not be. EINVAL for a shared page, past the end, and without a source
    that is needed; EFAULT for a page of the source that is private, or past its end;
    ENOENT if there is no fdname `source`; EHWPOISON; EPERM for a hole of a frozen file;
    EOPNOTSUPP in semantics without.
    """

    name: ClassVar[str] = "populate"
    returns: ClassVar[Any] = Populated

    file: File
    offset: Pgoff
    count: PageCount
    source: (
        Annotated[FdName, Meta(description="the fdname of a file of this mount")] | None
    ) = None
    source_offset: Pgoff | None = msgspec.field(name="source-offset", default=None)


class Freeze(Command, frozen=True, kw_only=True):
    """kvm_gmem_freeze(): no page is added or removed until unfreeze.

    fallocate(2), conversions, and what would fill a hole are EPERM; present pages can
    be got and written to. It waits for calls that run, and ends with the connection.
    EPERM if another peer has frozen the file, EBUSY if this one has; EINVAL without a
    size; EHWPOISON if a page is poisoned; EOPNOTSUPP in semantics without.
    """

    name: ClassVar[str] = "freeze"

    file: File


class Unfreeze(Command, frozen=True, kw_only=True):
    """Undoes freeze.

    EINVAL if the file is not frozen; EPERM if another peer has frozen it; EOPNOTSUPP in
    semantics without.
    """

    name: ClassVar[str] = "unfreeze"

    file: File


class Migrate(Command, frozen=True, kw_only=True):
    """Moves pages to other frames, as compaction would; notifiers get a punch's events.

    EOPNOTSUPP in semantics whose pages do not migrate, for private pages, and where
    frames are real; EINVAL past the end; EAGAIN while another call has the file locked,
    and after the start if a page has references, which is in `error.offset` then.
    """

    name: ClassVar[str] = "migrate"

    file: File
    offset: Pgoff
    count: PageCount


class CommitBind(Command, frozen=True, kw_only=True):
    """Puts into effect what bind has prepared.

    ENOENT if this peer has prepared no such notifier, which goes if this fails: with
    the errno of bind for a range that overlaps another.
    """

    name: ClassVar[str] = "commit-bind"

    notifier: NotifierId


class ReadShared(Command, frozen=True, kw_only=True):
    """Reads shared pages as through a mapping, which pins nothing.

    Waits for punches and conversions, and fills holes, as page faults do. EFAULT where
    a mapping would raise SIGBUS, for a page that is private or past the end, with the
    page in `error.offset`; so are EHWPOISON for a poisoned page, and EPERM for a hole
    of a frozen file. ENODEV in semantics whose files cannot be mapped.
    """

    name: ClassVar[str] = "read-shared"
    returns: ClassVar[Any] = Data

    file: File
    offset: ByteOffset
    count: ByteCount


class WriteShared(Command, frozen=True, kw_only=True):
    """Writes to shared pages as through a mapping; fails as read-shared does.

    EINVAL if `data` is no base64, or is empty.
    """

    name: ClassVar[str] = "write-shared"

    file: File
    offset: ByteOffset
    data: Annotated[str, Meta(max_length=32768, description="in base64")]


class PinPages(Command, frozen=True, kw_only=True):
    """pin_user_pages(), FOLL_LONGTERM, of a mapping's pages: pins shared pages.

    A pin is a reference beside those of get-pfn, and exists where these do not. It
    fails as read-shared does. Returns as get-pfn with `count` does.
    """

    name: ClassVar[str] = "pin-pages"
    returns: ClassVar[Any] = Frames

    file: File
    offset: Pgoff
    count: PageCount = 1


class UnpinPages(Command, frozen=True, kw_only=True):
    """unpin_user_pages(): gives back pins, of `pfn` or of `extents`.

    EINVAL, and no pin is given back, if this peer does not pin one of the pages.
    """

    name: ClassVar[str] = "unpin-pages"

    file: File
    pfn: Pfn | None = None
    count: PageCount = 1
    extents: (
        Annotated[
            list[PutExtent],
            Meta(min_length=1, description="instead of `pfn`, as pin-pages returns"),
        ]
        | None
    ) = None
