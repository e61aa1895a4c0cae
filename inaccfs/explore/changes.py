"""The calls that change files: what their steps touch, and checks when they return."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from inaccfs.explore import keys
from inaccfs.explore.files import Sizes, check_size
from inaccfs.explore.names import MOST_PAGES, frame
from inaccfs.explore.sync import LOT
from inaccfs.kvm.uapi import PAGE_SIZE
from inaccfs.syscalls import PUNCH

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from inaccfs.explore.dma import ExploredIommu
    from inaccfs.explore.files import Files
    from inaccfs.explore.judge import Judge
    from inaccfs.explore.schedule import Schedule
    from inaccfs.explore.sequence import Cells
    from inaccfs.explore.vm import ExploredVM
    from inaccfs.inprocess import Mount


class Punch(NamedTuple):
    """A punch of pages of a file, or a truncation, that is in progress."""

    file: int
    pages: range
    # "punch" or "truncation".
    what: str
    # Each page whose removal has begun, with its number from `Cells.punch_begins`.
    begun: dict[int, int]
    # Pages that other punches have removed meanwhile. They are judged in the end.
    left: set[int]


class Changes:
    """The calls of one execution. Numbers are pages."""

    def __init__(
        self,
        schedule: Schedule,
        mount: Mount,
        files: Files,
        cells: Cells,
        judge: Judge,
    ) -> None:
        self._schedule: Final = schedule
        self._mount: Final = mount
        self._files: Final = files
        self._cells: Final = cells
        self._judge: Final = judge
        # The punches in progress, by actor.
        self.punches: Final[dict[int, Punch]] = {}

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2), in bytes."""
        schedule = self._schedule
        first, end = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        punches = mode == PUNCH
        schedule.point(
            f"fallocate {'punches' if punches else 'allocates'} [{first}, {end})"
        )
        number = self._files.number(fd)
        end = min(end, MOST_PAGES)
        self._look(number, range(first, end), length)
        if not punches:
            schedule.touch(keys.size(number), False)
            if end > self._files.sizes[number].most:
                schedule.touch(keys.size(number))
                self._files.sizes[number] = self._files.sizes[number]._replace(most=end)
            self._mount.fallocate(fd, mode, offset, length)
            return
        with self._removing(fd, number, range(first, end), "punch"):
            self._mount.fallocate(fd, mode, offset, length)
            schedule.note("fallocate returns")

    @contextmanager
    def _removing(
        self, fd: int, number: int, pages: range, what: str
    ) -> Iterator[None]:
        """In a with block, a call removes pages of a file, unless it raises."""
        schedule = self._schedule
        if schedule.current is None:
            yield
            return
        me = schedule.current.index
        schedule.touch(("punching", number))
        mine = self.punches[me] = Punch(number, pages, what, {}, set())
        removed = mine.left
        end_one, has = self._cells.punch_fails, "has been refused"
        try:
            yield
            removed.update(pages)
            end_one, has = self._cells.punch_ends, "has returned"
        finally:
            del self.punches[me]
            schedule.touch(("punching", number))
            for page, begun in mine.begun.items():
                schedule.touch(keys.cell(number, page))
                end_one(number, page, begun)
            # Pages of another punch are judged when that ends.
            for other in self.punches.values():
                if other.file == number:
                    other.left.update(removed.intersection(other.pages))
                    removed.difference_update(other.pages)
            for page in removed:
                schedule.touch(keys.page(number, page), False)
            if removed:
                self._judge.mappings(fd, removed, f"the {what} {has}")

    @contextmanager
    def converting(
        self, vm: ExploredVM, first: int, end: int, *, private: bool
    ) -> Iterator[None]:
        """In a with block, gfns become shared, so that private pages lose content.

        Under rules that keep attributes in files, the pages stay, and become shared.
        """
        lost = [
            vm.places[gfn]
            for gfn in range(first, end)
            if not (private or vm.shared_in_file) and gfn in vm.places
        ]
        for place in lost:
            self._schedule.touch(keys.cell(*place))
        begun = [self._cells.punch_begins(*place) for place in lost]
        end_one = self._cells.punch_fails
        try:
            yield
            end_one = self._cells.punch_ends
        finally:
            for place, number in zip(lost, begun, strict=True):
                self._schedule.touch(keys.cell(*place))
                end_one(*place, number)

    def _look(self, number: int, pages: range, length: int) -> None:
        """A call of fallocate(2) reads whether it may, must wait, and sends events."""
        schedule, inode = self._schedule, self._files.inodes[number]
        notifiers = len(inode.notifiers)
        if not schedule.tracks:
            return
        schedule.touch(keys.frozen(number), False)
        if self._mount.semantics.past_end == "refused":
            schedule.touch(keys.size(number), False)
        schedule.touch(("punching", number))
        if not notifiers:
            # Whether any page has been fetched.
            schedule.touch(keys.size(number), False)
            for page in range(max(pages.stop, self._files.sizes[number].most)):
                schedule.touch(keys.page(number, page), False)
            if length <= inode._fast_limit:
                # The file is changed at once, without a call of `_on_change`.
                for page in pages:
                    schedule.touch(keys.page(number, page))
        if self._mount.semantics.locks_pages:
            schedule.touch(LOT)

    def ftruncate(self, fd: int, pages: int) -> None:
        """ftruncate(2), in pages."""
        check_size(pages)
        schedule = self._schedule
        schedule.point(f"ftruncate to {pages} pages")
        number = self._files.number(fd)
        schedule.touch(keys.size(number))
        before = self._files.sizes[number]
        most = max(pages, before.most)
        for page in range(most):
            schedule.touch(keys.page(number, page))
        # Pages past a new end go at any time from now on.
        least = min(pages, before.least) if schedule.runs else pages
        mine = self._files.sizes[number] = Sizes(most, least)
        try:
            with self._removing(fd, number, range(pages, most), "truncation"):
                self._mount.ftruncate(fd, pages * PAGE_SIZE)
        except OSError:
            if self._files.sizes[number] is mine:
                self._files.sizes[number] = before
            raise
        finally:
            # By now it may be a later step.
            schedule.touch(keys.size(number))

    def memory_failure(self, vm: ExploredVM, fd: int, page: int) -> None:
        """Call memory-failure; note an error in the schedule."""
        schedule, what = self._schedule, "memory-failure of page {}"
        schedule.point(what.format(page))
        number = self._files.number(fd)
        schedule.touch(keys.size(number), False)
        for each in range(self._files.sizes[number].most):
            schedule.touch(keys.page(number, each))
        vm.client.connected()
        memory = self._mount.inode(fd).pages.memory
        known = memory and memory.frames.known(page, page + 1)
        failing = {known[0].pfn} if known else set()
        self._judge.failed.update(failing)
        try:
            vm.client.client.file(fd).memory_failure(page)
        except OSError as exc:
            schedule.refuse(str(exc.strerror), what, page)
            self._judge.failed.difference_update(failing)
            return
        schedule.grant(what, page)
        if self._mount.semantics.memory_failure == "invalidate":
            self._judge.failures(failing, "memory-failure has returned")

    def convert(
        self,
        user: ExploredVM | ExploredIommu,
        fd: int,
        pages: tuple[int, int],
        *,
        private: bool,
    ) -> None:
        """Call set-memory-attributes; the rules may refuse it."""
        schedule, (first, end) = self._schedule, pages
        word = "private" if private else "shared"
        what = f"conversion of pages [{{}}, {{}}) to {word}"
        schedule.point(f"makes [{first}, {end}) {word}")
        self._files.number(fd)
        user.client.connected()
        try:
            user.client.client.file(fd).set_memory_attributes(
                first, end - first, private
            )
        except OSError as exc:
            schedule.refuse(str(exc.strerror), what, first, end)
            return
        schedule.grant(what, first, end)
        schedule.note("the conversion returns")
        self._judge.kinds(self._files.inodes, "the conversion has returned")

    def freeze(self, user: ExploredVM, fd: int) -> None:
        """Freeze a file, and unfreeze it; find pages that come or go in between."""
        schedule, number = self._schedule, self._files.number(fd)
        schedule.point("freezes the file")
        user.client.connected()
        schedule.touch(keys.frozen(number), False)
        try:
            file = user.client.client.file(fd)
            file.freeze()
        except OSError as exc:
            schedule.refuse(str(exc.strerror), "freeze")
            return
        schedule.grant("freeze")
        before = self._present(number)
        schedule.note("it is frozen")
        schedule.point("unfreezes it")
        user.client.connected()
        if not user.client.client.lost and self._present(number) != before:
            schedule.violate(
                "changed-frozen",
                f"file {number} has other pages than when it was frozen",
            )
        schedule.touch(keys.frozen(number), False)
        try:
            file.unfreeze()
        except ConnectionError as exc:
            # Its daemon has disconnected it, and so has unfrozen the file.
            schedule.refuse(str(exc.strerror), "unfreeze")

    def _present(self, number: int) -> Hashable:
        """The pages of a file that have memory."""
        inode, schedule = self._files.inodes[number], self._schedule
        schedule.touch(keys.size(number), False)
        for page in range(self._files.sizes[number].most):
            schedule.touch(keys.page(number, page), False)
        memory = inode.pages.memory
        extents = () if memory is None else tuple(memory.frames.extents())
        return os.fstat(inode.fd).st_blocks, extents

    def on_change(self, fd: int, offset: int, length: int) -> None:
        """A call is about to remove or to add pages."""
        schedule = self._schedule
        if schedule.current is None:
            return
        punch = self.punches.get(schedule.current.index)
        removes = punch is not None
        schedule.point("removes the pages" if removes else "allocates the pages")
        number = self._files.number(fd)
        schedule.touch(keys.frozen(number), False)
        first, end = offset // PAGE_SIZE, -(-(offset + length) // PAGE_SIZE)
        end = min(end, MOST_PAGES)
        memory = self._mount.inode(fd).pages.memory
        if punch is not None and punch.what == "truncation":
            schedule.touch(keys.size(number))
        for page in range(first, end):
            schedule.touch(keys.page(number, page))
            if punch is not None:
                schedule.touch(keys.cell(number, page))
                punch.begun[page] = self._cells.punch_begins(number, page)
        if removes and memory is not None:
            for extent in memory.extents_in(first, end):
                for at in range(extent.count):
                    pfn = extent.pfn + at
                    schedule.touch(keys.references(pfn))
                    schedule.note(f"page {extent.offset + at} goes, frame {frame(pfn)}")
