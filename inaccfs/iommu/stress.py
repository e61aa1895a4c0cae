"""Devices that take part in `inaccfs kvm stress`, on pages that no slot maps."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from inaccfs.iommu.iommu import Iommu
from inaccfs.kvm.uapi import PAGE_SHIFT, PAGE_SIZE
from inaccfs.kvm.workload import Actor
from inaccfs.kvm.world import DMA_PAGES, FILE_PAGES
from inaccfs.syscalls import PUNCH, fallocate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from inaccfs.client import Client
    from inaccfs.kvm.world import World

# The average time between two changes of the pages.
_PAUSE_SECONDS: Final = 0.005


class Devices:
    """An IOMMU, a device, and a thread that punches and converts its pages.

    See `inaccfs.kvm.stress.Others`.
    """

    def __init__(self, shim: Client, fd: int) -> None:
        """*fd* is the file of the stress."""
        rules = shim.query_semantics()
        self._after: Final = rules.order == "after"
        self.converts: Final = rules.in_place
        # Otherwise files consist of huge pages, and only whole ones can be punched.
        self.by_page: Final = not rules.by_huge_page
        self.file: Final = shim.file(fd)
        self.iommu: Final = Iommu(shim)
        # Devices use shared pages, where there are any.
        if self.converts:
            self.file.set_memory_attributes(FILE_PAGES, DMA_PAGES, False)
        self.iommu.map_file(fd, 0, DMA_PAGES * PAGE_SIZE, FILE_PAGES * PAGE_SIZE)
        self.notifiers: Final = 1

    def actors(self, world: World, dice: Iterator[Random]) -> list[Actor]:
        """One thread for the device, and one that changes its pages."""
        return [_Device(self, world, next(dice)), _Changer(self, world, next(dice))]

    def check(self) -> Iterator[str]:
        """Find uses after a change, if the rules send events before the change."""
        used = self.iommu.stats.uses_after_change
        if used and not self._after:
            yield f"a device has used pages after they were changed {used} times"

    def close(self) -> None:
        """Close the IOMMU."""
        self.iommu.close()
        self.file.close()


class _Device(Actor):
    """The thread of the device: it reads and writes."""

    def __init__(self, devices: Devices, world: World, dice: Random) -> None:
        super().__init__("device", world, dice)
        self._iommu: Final = devices.iommu
        self._device: Final = devices.iommu.create_device()

    def act(self) -> None:
        """Make one access; now and then map again what events have unmapped."""
        dice = self._dice
        iova = dice.randrange(DMA_PAGES) << PAGE_SHIFT
        if dice.random() < 0.1:
            self._iommu.restore()
        elif dice.random() < 0.5:
            self._device.read(iova, 8)
        else:
            self._device.write(iova, b"from dma")
        self.counts["dma"] += 1


class _Changer(Actor):
    """The thread that punches and converts the pages."""

    def __init__(self, devices: Devices, world: World, dice: Random) -> None:
        super().__init__("owner of the file", world, dice)
        self._devices: Final = devices

    def act(self) -> None:
        """Make one change. A frozen file or a referenced page may refuse it."""
        dice, devices = self._dice, self._devices
        page = dice.randrange(DMA_PAGES)
        count = min(dice.choice((1, 1, 3, 16)), DMA_PAGES - page)
        try:
            if devices.converts and dice.random() < 0.5:
                private = dice.random() < 0.5
                devices.file.set_memory_attributes(FILE_PAGES + page, count, private)
                self.counts["conversions"] += 1
            else:
                if not devices.by_page:
                    page, count = 0, DMA_PAGES
                offset = (FILE_PAGES + page) << PAGE_SHIFT
                fallocate(self._world.fd, PUNCH, offset, count << PAGE_SHIFT)
                self.counts["punches"] += 1
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, *self._world.refusals):
                raise
        self._world.stop.wait(dice.expovariate(1 / _PAUSE_SECONDS))
