"""An IOMMU: it maps areas of files for devices, and unmaps what changes.

Locks, from the outside in: `_maps`, for changes of areas, held across client calls; the
lock of `IoTable`, never held across a client call; and each device's `busy`.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final, get_args

from inaccfs.iommu.area import GETS_EVENTS, Area, Entry, Learns
from inaccfs.iommu.device import Device
from inaccfs.iommu.iotable import IoTable
from inaccfs.kvm.backing import BackingFiles
from inaccfs.kvm.memory import PlainMemory
from inaccfs.kvm.regions import check_range
from inaccfs.kvm.sync import THREADS
from inaccfs.kvm.uapi import PAGE_SHIFT, no_hook

if TYPE_CHECKING:
    from typing import Self

    from inaccfs.iommu.stats import Stats
    from inaccfs.kvm.backing import Frames
    from inaccfs.kvm.memory import GuestMemory
    from inaccfs.kvm.shim import Shim
    from inaccfs.kvm.sync import Sync
    from inaccfs.kvm.uapi import Hook

WAYS: Final[tuple[Learns, ...]] = get_args(Learns)
"""How an IOMMU can learn of changes."""

# The most lookups of a page that changes all the time.
_TRIES: Final = 1000


class Iommu:
    """An IOMMU whose memory comes from the shim. Close it before its client.

    *learns* is how it learns that pages change:

    - "nothing": it takes neither references nor notifiers (iommufd, RFC of 25 February
      2026: the VMM has to map again);
    - "before and after": it unmaps pages at the start of an event, and waits for the
      devices; `restore` maps again what has changed, after the end;
    - "revoke": the first event that concerns an area unmaps all of it, for good;
    - "pins": it pins the pages of an area, as FOLL_LONGTERM does, and gets no event. So
      conversions to private fail. Where files cannot be mapped it keeps references.

    *memory*, *sync* and *hooks* are like those of `inaccfs.kvm.VM`. Hooks are called
    with iovas, in pages, at `event:begin` and `event:end`, and in a device's access at
    `access`, where they must not block.
    """

    def __init__(
        self,
        shim: Shim,
        *,
        learns: Learns = "before and after",
        hooks: Hook | None = None,
        memory: GuestMemory | None = None,
        sync: Sync = THREADS,
    ) -> None:
        """Asks the daemon for its semantics.

        Raises:
            ControlError: the daemon has ended.
        """
        if learns not in WAYS:
            raise ValueError(f"learns {learns!r}: give one of {', '.join(WAYS)}")
        self.learns: Final = learns
        self.rules: Final = shim.query_semantics()
        self.hook: Final[Hook] = hooks or no_hook
        self._sync: Final = sync
        self._in_place: Final = self.rules.in_place
        self._pins: Final = learns == "pins"
        self._maps: Final = sync.lock("maps")
        self._io: Final = IoTable(shim, memory or PlainMemory(), self.hook, sync)
        self._files: Final = BackingFiles(shim, self.rules, sync)

    def __repr__(self) -> str:
        return f"<Iommu, {self.learns}, of {len(self._io.areas)} areas>"

    # --- ioctls -----------------------------------------------------------------------

    def map_file(self, fd: int, iova: int, size: int, offset: int = 0) -> Area:
        """IOMMU_IOAS_MAP_FILE: let devices use a file's pages. In bytes.

        Pages in holes are allocated. *fd* stays the caller's.

        Raises:
            OSError: EINVAL for a bad range or a file of another kind; EEXIST if the
                range overlaps an area; EFAULT if a page to be pinned is private; the
                errno of bind, where a page has only one user; the errno of get-pfn.
        """
        check_range(iova, size)
        check_range(offset, size)
        if not size:
            raise OSError(errno.EINVAL, "no bytes")
        first, pages = iova >> PAGE_SHIFT, size >> PAGE_SHIFT
        with self._maps, ExitStack() as undo:
            if any(
                each.first < first + pages and first < each.end
                for each in self._io.areas
            ):
                raise FileExistsError(errno.EEXIST, "the range overlaps another area")
            backing = self._files.open(fd)
            undo.callback(self._files.release, backing)
            area = Area(backing, first, pages, offset >> PAGE_SHIFT, self.learns)
            undo.pop_all()
            undo.callback(self._remove, area)
            if self.learns in GETS_EVENTS:
                area.listen(self.rules, self._changed, self._start, self._end)
            # From now on events find the area, and unmap its pages.
            with self._io.lock:
                self._io.areas = (*self._io.areas, area)
            self._fill(area, first, first + pages)
            backing.reach(area.pgoff + pages)
            undo.pop_all()
        return area

    def unmap(self, iova: int, size: int) -> int:
        """IOMMU_IOAS_UNMAP: unmap areas. In bytes; returns how many it has unmapped.

        Raises:
            OSError: ENOENT if there is no area; EINVAL if one is only partly in the
                range.
        """
        check_range(iova, size)
        first, end = iova >> PAGE_SHIFT, (iova + size) >> PAGE_SHIFT
        with self._maps:
            found = [
                each for each in self._io.areas if each.first < end and first < each.end
            ]
            if not found:
                raise FileNotFoundError(errno.ENOENT, f"no area at iova {iova:#x}")
            if any(each.first < first or each.end > end for each in found):
                raise OSError(errno.EINVAL, "an area is unmapped as a whole")
            with ExitStack() as stack:
                for area in found:
                    stack.callback(self._remove, area)
        return sum(area.pages for area in found) << PAGE_SHIFT

    def restore(self) -> int:
        """Map again what events have unmapped; returns how many pages of 4 KiB.

        Call it after a change, as Intel's IOMMU needs. Pages that get-pfn refuses, or
        that change all the time, stay unmapped; a later call tries them again.
        """
        restored = 0
        with self._maps:
            for area in self._io.areas:
                with self._io.lock:
                    pending = sorted(area.pending)
                for page in pending:
                    try:
                        self._fill(area, page, page + 1)
                    except ConnectionError:
                        raise
                    except OSError:
                        continue
                    restored += 1
        with self._io.lock:
            self._io.stats.restored += restored
        return restored

    def create_device(self) -> Device:
        """Make a device. Devices use all areas."""
        with self._io.lock:
            busy = self._sync.lock("device")
            device = Device(self._io, len(self._io.devices), busy)
            self._io.devices.append(busy)
        return device

    # --- mapping ----------------------------------------------------------------------

    def _fill(self, area: Area, start: int, end: int) -> None:
        """Look pages up and map them; repeat it while events race with it."""
        for _ in range(_TRIES):
            with self._io.lock:
                if area.revoked:
                    return
                seq = self._io.invalidation.seq
            found = self._get(area, start, end)
            try:
                with self._io.lock:
                    if area.learns in ("nothing", "pins") or not (
                        self._io.invalidation.retry(seq, start, end)
                    ):
                        self._install(area, found, start, end)
                        return
                    self._io.stats.retries += 1
            finally:
                if not self._pins:
                    area.backing.put(found)
            self._io.wait(start, end)
        raise OSError(errno.EAGAIN, "the pages change all the time")

    def _get(self, area: Area, start: int, end: int) -> list[Frames]:
        pgoff, pages = area.page_of(start), end - start
        if not self._pins:
            return area.backing.get(pgoff, pages)
        found = (
            area.backing.pin(pgoff, pages)
            if self.rules.mappable
            else area.backing.get(pgoff, pages)
        )
        area.pins.extend(found)
        return found

    def _install(self, area: Area, found: list[Frames], start: int, end: int) -> None:
        shift = area.first - area.pgoff
        for frames in found:
            for index in range(frames.pages):
                page = frames.pgoff + index + shift
                if start <= page < end:
                    self._io.table[page] = Entry(frames.pfn + index, frames.private)
                    area.pending.discard(page)
                    self._io.stats.mapped += 1

    # --- events -----------------------------------------------------------------------

    def _changed(self, area: Area, start: int, end: int, kinds: str | None) -> None:
        """Handle INVALIDATE, which has no end."""
        try:
            self.hook("event:begin", start, end)
        finally:
            # Unmap even if a hook raises: after this the daemon relies on it.
            with self._io.lock:
                self._io.invalidation.begin(start, end)
                self._unmap(area, start, end, kinds)
                self._io.end()
        self.hook("event:end", start, end)

    def _start(self, area: Area, start: int, end: int, kinds: str | None) -> None:
        try:
            self.hook("event:begin", start, end)
        finally:
            with self._io.lock:
                self._io.invalidation.begin(start, end)
                area.begun += 1
                self._unmap(area, start, end, kinds)

    def _end(self, area: Area, start: int, end: int, _kinds: str | None) -> None:
        with self._io.lock:
            area.begun -= 1
            self._io.end()
        self.hook("event:end", start, end)

    def _unmap(self, area: Area, start: int, end: int, kinds: str | None) -> None:
        """Unmap the pages of an event, and wait for the devices. With the lock."""
        self._io.stats.events += 1
        concerned = [
            page
            for page in range(start, end)
            if (entry := self._io.table.get(page)) is not None and _is(entry, kinds)
        ]
        if area.learns == "revoke" and (concerned or not self._in_place):
            self._io.stats.revoked += not area.revoked
            area.revoked = True
            concerned = [
                page for page in range(area.first, area.end) if page in self._io.table
            ]
        else:
            area.pending.update(concerned)
        self._io.drop(concerned)
        self._io.stats.unmapped += len(concerned)

    # --- looking ----------------------------------------------------------------------

    @property
    def areas(self) -> tuple[Area, ...]:
        """The areas."""
        return self._io.areas

    @property
    def stats(self) -> Stats:
        """The counters, at this moment."""
        with self._io.lock:
            return replace(self._io.stats)

    # --- the end ----------------------------------------------------------------------

    def _let_go(self, area: Area) -> None:
        """Unmap an area, and release its pins and its notifier."""
        with self._io.lock:
            self._io.areas = tuple(each for each in self._io.areas if each is not area)
            self._io.drop(
                [page for page in range(area.first, area.end) if page in self._io.table]
            )
        pins, area.pins = area.pins, []
        if not pins:
            return
        if not self.rules.mappable:
            area.backing.put(pins)
        else:
            area.backing.unpin(pins)

    def _remove(self, area: Area) -> None:
        with ExitStack() as stack:
            stack.callback(self._files.release, area.backing)
            if area.notifier is not None:
                stack.callback(self._silence, area)
            stack.callback(self._let_go, area)

    def _silence(self, area: Area) -> None:
        assert area.notifier is not None
        try:
            area.notifier.unregister()
        finally:
            with self._io.lock:
                # End what has begun: these ends will not be sent.
                while area.begun > 0:
                    area.begun -= 1
                    self._io.end()

    def close(self) -> None:
        """Unmap all areas.

        Raises:
            BaseException: what a hook raised in a callback.
        """
        with self._maps, ExitStack() as stack:
            for area in self._io.areas:
                stack.callback(self._remove, area)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is(entry: Entry, kinds: str | None) -> bool:
    """Whether an event with these kinds concerns a page."""
    if kinds in (None, "both") or entry.private is None:
        return True
    return entry.private is (kinds == "private")
