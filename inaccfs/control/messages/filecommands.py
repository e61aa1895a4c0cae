"""Commands about private and shared pages, and the content of files."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from inaccfs.control.messages.commands import Command, Exists, PutExtent
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

    Every process that has the file open may use it. If the whole range already has the
    attribute, no event is sent. EINVAL past the end; EPERM for a frozen file;
    EOPNOTSUPP in semantics that keep attributes per VM, or nowhere; EFAULT if all users
    have closed the file; ENOMEM if the file would have more than a million ranges. A
    conversion to private is EAGAIN if a page has references, and `error.offset` is that
    page. Nothing is converted then, except in semantics that convert one huge page
    after the other: there the huge pages before `error.offset` are. There a conversion
    ends early, too, if the peer disconnects.
    """

    name: ClassVar[str] = "set-memory-attributes"
    exists: ClassVar[Exists] = lambda rules: rules.in_place

    file: File
    offset: Pgoff
    count: PageCount
    private: Annotated[bool, Meta(description="false: they become shared")]


class QueryMemoryAttributes(Command, frozen=True, kw_only=True):
    """Returns which pages of a file are private: ranges that cover the file, in order.

    Adjacent pages with the same attribute are one range. If there are more than 1000,
    the reply has `next` beside `return`. In semantics that do not keep attributes in
    the file, there is one range with the initial attribute. EFAULT if all users have
    closed the file (see `getfd`): the attributes vanish with it.
    """

    name: ClassVar[str] = "query-memory-attributes"
    returns: ClassVar[Any] = list[MemoryAttributes]

    file: File
    start: Annotated[
        int, Meta(ge=0, description="where to begin: `next` of the previous reply")
    ] = 0
    limit: Limit | None = None


class PopulatePages(Command, frozen=True, kw_only=True):
    """kvm_gmem_populate(): gives private pages their first content, from `source`.

    Without `source`, if the semantics allow that, the content is already in the pages,
    and holes are only allocated. Returns how many pages were populated, and fails only
    if the first one failed. EINVAL for a shared page, for one past the end, and if
    there is no source where one is needed; EFAULT if a page of the source is private or
    past its end, or if all users have closed the file; ENOENT if `source` is not an
    fdname; EHWPOISON; EPERM for a hole of a frozen file; EOPNOTSUPP in semantics
    without this command.
    """

    name: ClassVar[str] = "populate"
    returns: ClassVar[Any] = Populated
    exists: ClassVar[Exists] = lambda rules: rules.has_populate

    file: File
    offset: Pgoff
    count: PageCount
    source: (
        Annotated[FdName, Meta(description="the fdname of a file of this mount")] | None
    ) = None
    source_offset: Pgoff | None = msgspec.field(name="source-offset", default=None)


class Freeze(Command, frozen=True, kw_only=True):
    """kvm_gmem_freeze(): no page is added or removed until unfreeze.

    fallocate(2), conversions, and all that would fill a hole are EPERM; present pages
    can be fetched and written to. The command waits for calls in progress; the freeze
    ends with the connection. EPERM if another peer has frozen the file, EBUSY if this
    peer has; EINVAL for a file without a size; EHWPOISON if a page is poisoned;
    EOPNOTSUPP in semantics without this command.
    """

    name: ClassVar[str] = "freeze"
    exists: ClassVar[Exists] = lambda rules: rules.has_freeze

    file: File


class Unfreeze(Command, frozen=True, kw_only=True):
    """Undoes freeze.

    EINVAL if the file is not frozen; EPERM if another peer has frozen it; EOPNOTSUPP in
    semantics without this command.
    """

    name: ClassVar[str] = "unfreeze"
    exists: ClassVar[Exists] = lambda rules: rules.has_freeze

    file: File


class Migrate(Command, frozen=True, kw_only=True):
    """Moves pages to other frames, as compaction would. Sends the events of a punch.

    EOPNOTSUPP in semantics whose pages do not migrate, for private pages, and if frames
    are real; EINVAL past the end; EAGAIN while another call has the file locked, and
    after the start event if a page has references; then `error.offset` is that page.
    """

    name: ClassVar[str] = "migrate"
    exists: ClassVar[Exists] = lambda rules: rules.has_migrate

    file: File
    offset: Pgoff
    count: PageCount


class CommitBind(Command, frozen=True, kw_only=True):
    """Puts a binding into effect that bind has prepared.

    ENOENT if this peer has prepared no such notifier. If the range overlaps another, it
    fails with the errno of bind, and the notifier is removed.
    """

    name: ClassVar[str] = "commit-bind"
    exists: ClassVar[Exists] = lambda rules: rules.has_commit_bind

    notifier: NotifierId


class ReadShared(Command, frozen=True, kw_only=True):
    """Reads shared pages as if through a mapping, which pins nothing.

    Waits for punches and conversions, and fills holes, as page faults do. Where an
    access to a mapping would raise SIGBUS, it is EFAULT for a page that is private or
    past the end, EHWPOISON for a poisoned page, and EPERM for a hole of a frozen file,
    and `error.offset` is the page. ENODEV in semantics whose files cannot be mapped.
    """

    name: ClassVar[str] = "read-shared"
    returns: ClassVar[Any] = Data
    exists: ClassVar[Exists] = lambda rules: rules.mappable

    file: File
    offset: ByteOffset
    count: ByteCount


class WriteShared(Command, frozen=True, kw_only=True):
    """Writes to shared pages as if through a mapping; fails as read-shared does.

    EINVAL if `data` is not base64, or is empty.
    """

    name: ClassVar[str] = "write-shared"
    exists: ClassVar[Exists] = lambda rules: rules.mappable

    file: File
    offset: ByteOffset
    data: Annotated[str, Meta(max_length=32768, description="in base64")]


class PinPages(Command, frozen=True, kw_only=True):
    """pin_user_pages(), FOLL_LONGTERM: pins shared pages as if through a mapping.

    A pin is a reference that is separate from those of get-pfn; it also exists in
    semantics without these. Returns the same as get-pfn with `count`. EFAULT, and
    `error.offset` is the page, for a page that is private, past the end or poisoned,
    and for a hole that gets no page; but ENOMEM if there is no memory for it. ENODEV in
    semantics whose files cannot be mapped.
    """

    name: ClassVar[str] = "pin-pages"
    returns: ClassVar[Any] = Frames
    exists: ClassVar[Exists] = lambda rules: rules.mappable

    file: File
    offset: Pgoff
    count: PageCount = 1


class UnpinPages(Command, frozen=True, kw_only=True):
    """unpin_user_pages(): gives pins back, of `pfn` or of `extents`.

    EINVAL, and no pin is given back, if this peer does not pin one of the pages.
    """

    name: ClassVar[str] = "unpin-pages"
    exists: ClassVar[Exists] = lambda rules: rules.mappable

    file: File
    pfn: Pfn | None = None
    count: PageCount = 1
    extents: (
        Annotated[
            list[PutExtent],
            Meta(min_length=1, description="instead of `pfn`: extents of pin-pages"),
        ]
        | None
    ) = None
