"""The threads of `inaccfs kvm stress`: guests access memory, hosts remove it."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Final

from inaccfs.kvm.oracle import STAMP_BYTES
from inaccfs.kvm.uapi import PAGE_SHIFT, MemoryFaultExit, MmioExit
from inaccfs.kvm.world import FILE_PAGES, WINDOW_PAGES

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from inaccfs.kvm.vcpu import Vcpu
    from inaccfs.kvm.world import Window, World

# Half of all accesses go to the first so many pages of a slot, so that they collide.
_HOT_PAGES: Final = 48
_PUNCH_PAGES: Final = (1, 1, 1, 1, 3, 16, 64, 512)

# The most tries of an access whose page another vCPU keeps converting back.
_TRIES: Final = 16

# How long a host waits between two actions, on average: without the pause, the guests
# would only fault.
_PAUSE_SECONDS: Final = 0.01


# The longest time that a file stays frozen.
_FROZEN_SECONDS: Final = 0.01


class Actor:
    """The work of one thread, and its counts."""

    def __init__(self, name: str, world: World, dice: Random) -> None:
        self.name: Final = name
        self.counts: Final[Counter[str]] = Counter()
        self._world: Final = world
        self._dice: Final = dice

    def run(self) -> None:
        """Act until the world stops."""
        world = self._world
        try:
            while not world.stop.is_set():
                self.act()
        except BaseException:
            world.violation(f"{self.name} has failed:\n{traceback.format_exc()}")

    def act(self) -> None:
        """Perform one action."""
        raise NotImplementedError

    def _place(self, window: Window) -> int:
        pages = window.pages
        if self._dice.random() < 0.5:
            pages = min(pages, _HOT_PAGES)
        return self._dice.randrange(pages)


class Guest(Actor):
    """A vCPU that reads and writes stamps."""

    def __init__(self, number: int, world: World, dice: Random) -> None:
        super().__init__(f"vCPU {number}", world, dice)
        self._vcpu: Final[Vcpu] = world.vm.create_vcpu()

    def act(self) -> None:
        """One access, at random."""
        dice = self._dice
        window = dice.choice(self._world.windows)
        touch = self.write if dice.random() < 0.4 else self.read
        touch(window, self._place(window), private=dice.random() < 0.98)

    def read(self, window: Window, index: int, *, private: bool) -> None:
        """Read a page's stamp, and let the oracle judge it."""
        world, gpa = self._world, window.gpa(index)

        def access() -> None:
            thread = threading.get_ident()
            world.used_leaving.pop(thread, None)
            begin = world.oracle.begin_read()
            try:
                found = self._vcpu.read(gpa, STAMP_BYTES, private=private)
            except BaseException:
                world.oracle.drop_read(begin)
                raise
            value = int.from_bytes(found, "little")
            cell = window.cell(index, private=private)
            verdict = world.oracle.end_read(begin, cell, value)
            if verdict.wrong is not None:
                world.violation(f"{self.name}, gpa {gpa:#x}: {verdict.wrong}")
            if not value and verdict.early == (world.used_leaving.get(thread),):
                # The page was removed, but was accessed through its former frame. If
                # others remove the page, too, another page may have that frame by then.
                self.counts["stale"] += 1

        self._do(access, window, index, private=private)

    def write(self, window: Window, index: int, *, private: bool) -> None:
        """Write a new stamp to a page."""
        world, gpa = self._world, window.gpa(index)
        cell = window.cell(index, private=private)

        def access() -> None:
            change = world.oracle.begin_write(cell)
            data = change.stamp.to_bytes(STAMP_BYTES, "little")
            try:
                self._vcpu.write(gpa, data, private=private)
            except BaseException:
                world.oracle.undo(change, [cell])
                raise
            world.oracle.end(change, [cell])

        self._do(access, window, index, private=private)

    def _do(
        self,
        access: Callable[[], None],
        window: Window,
        index: int,
        *,
        private: bool,
    ) -> None:
        """Make an access as a guest does, unaware of its exits."""
        for _ in range(_TRIES):
            try:
                access()
            except MmioExit:
                if window in self._world.windows:
                    raise
                return
            except MemoryFaultExit as exc:
                self.counts["exits"] += 1
                if exc.errno in self._world.refusals:
                    # A hole of a frozen file.
                    return
                if not exc.asks:
                    raise
                if not self._world.convert(window, index, 1, private=private):
                    return
            else:
                self.counts["accesses"] += 1
                return


class Host(Actor):
    """A thread that changes a running guest's memory, like a VMM or other processes."""

    def __init__(self, number: int, world: World, dice: Random) -> None:
        super().__init__(f"puncher {number}", world, dice)
        # The ids of the slots that this host makes and deletes.
        self._slots: Final = itertools.cycle(range(1 + 3 * number, 4 + 3 * number))
        self._own: Final[list[Window]] = []

    def act(self) -> None:
        """Perform a random action."""
        deeds = (
            *(self._punch, self._convert, self._allocate, self._prefault),
            *(self._slot, self._freeze),
        )
        freezes = 5 if self._world.freezes else 0
        (deed,) = self._dice.choices(deeds, (50, 15, 10, 10, 15, freezes))
        deed()
        self._world.stop.wait(self._dice.expovariate(1 / _PAUSE_SECONDS))

    def _some(self) -> tuple[Window, int, int]:
        """Pages of a slot that stays while this thread does something else."""
        window = self._dice.choice((self._world.windows[0], *self._own))
        pages = self._dice.choice(_PUNCH_PAGES)
        index = min(self._place(window), max(window.pages - pages, 0))
        return window, index, min(pages, window.pages - index)

    def _punch(self) -> None:
        self._world.punch(*self._some())
        self.counts["punches"] += 1

    def _convert(self) -> None:
        self._world.convert(*self._some(), private=self._dice.random() < 0.7)
        self.counts["conversions"] += 1

    def _allocate(self) -> None:
        window, index, pages = self._some()
        self._world.allocate(window, index, pages)
        self.counts["allocations"] += 1

    def _prefault(self) -> None:
        window, index, pages = self._some()
        try:
            self._world.vm.pre_fault_memory(window.gpa(index), pages << PAGE_SHIFT)
        except PermissionError:
            if not self._world.freezes:
                raise
        self.counts["prefaults"] += 1

    def _freeze(self) -> None:
        self._world.freeze(self._dice.random() * _FROZEN_SECONDS)
        self.counts["freezes"] += 1

    def _slot(self) -> None:
        self.counts["slots"] += 1
        if len(self._own) == 3 or (self._own and self._dice.random() < 0.5):
            self._world.remove_window(self._own.pop(0))
            return
        pages = self._dice.choice(WINDOW_PAGES)
        pgoff = self._dice.randrange(FILE_PAGES - pages + 1)
        if self._dice.random() < 0.5:
            # Congruent, so that there can be huge pages.
            pgoff &= -512
        slot = next(self._slots)
        while any(slot == each.slot for each in self._own):
            slot = next(self._slots)
        made = self._world.add_window(slot, pages, pgoff)
        if made is not None:
            self._own.append(made)
