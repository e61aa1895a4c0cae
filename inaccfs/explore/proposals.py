"""Scenarios of what is proposed: conversions by file, devices, frozen files.

Other versions refuse their calls, so they find nothing there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from inaccfs.explore.scenario import Scenario
from inaccfs.explore.setups import OnePage, TwoVMsOfAFile

if TYPE_CHECKING:
    from inaccfs.iommu import Learns


class ConvertInPlace(OnePage):
    """Does a fault map a page as private after the file has made it shared?"""

    name = "convert-in-place"

    def actor_vcpu(self) -> None:
        """One access."""
        self.read(self.vcpu, 0)

    def actor_convert(self) -> None:
        """By a process that has the file's fd."""
        self.convert_file(self.one, self.memory, 0, 1, private=False)


class ConvertTwoVMs(TwoVMsOfAFile):
    """Is a VM safe while pages of two VMs are converted?"""

    name = "convert-two-vms"

    def setup(self) -> None:
        """See `Scenario`."""
        super().setup()
        self.unmap(self.first, 0, 1)

    def actor_convert(self) -> None:
        """Both pages become shared."""
        self.convert_file(self.second, self.memory, 0, 2, private=False)

    def actor_vcpu(self) -> None:
        """One access."""
        self.read(self.vcpu, 0)


class _Dma(Scenario):
    """A device that uses a shared page."""

    learns: ClassVar[Learns] = "before and after"

    def setup(self) -> None:
        """See `Scenario`."""
        self.memory = self.file(pages=2)
        self.one = self.vm()
        # Where pages have one user, an IOMMU with a notifier has to be that user.
        hears = self.learns in ("before and after", "revoke")
        self.slot(self.one, self.memory, page=1 if hears else 0)
        self.convert_file(self.one, self.memory, 0, 1, private=False)
        self.mapped = self.iommu(self.learns, self.memory, 1)
        self.device = self.mapped.create_device()
        self.dma(self.device, 0, "old")

    def actor_device(self) -> None:
        """Two accesses."""
        self.dma(self.device, 0)
        self.dma(self.device, 0)

    def actor_restore(self) -> None:
        """It maps what events have unmapped so far."""
        self.restore(self.mapped)


class Dma(_Dma):
    """Does a device use a page after it was converted?"""

    def actor_convert(self) -> None:
        """The page becomes private."""
        self.convert_file(self.one, self.memory, 0, 1, private=True)


class DmaPunch(_Dma):
    """Does a device use a page after it was punched?"""

    name = "dma-punch"

    def actor_punch(self) -> None:
        """Removes the page."""
        self.punch(self.memory, 0, 1)


class Split(Scenario):
    """Are a guest's accesses right while a huge page is split and merged?"""

    def setup(self) -> None:
        """See `Scenario`."""
        self.one = self.vm()
        self.memory = self.file(pages=2)
        self.slot(self.one, self.memory, pages=2)
        self.vcpu = self.one.create_vcpu()
        self.write(self.vcpu, 1, "old")

    def actor_convert(self) -> None:
        """The huge page is split, and merged again."""
        self.convert_file(self.one, self.memory, 0, 1, private=False)
        self.convert_file(self.one, self.memory, 0, 1, private=True)

    def actor_vcpu(self) -> None:
        """One access to each."""
        self.read(self.vcpu, 1)
        self.read(self.vcpu, 0)


class Freeze(Scenario):
    """Is a page added or removed while its file is frozen?"""

    def setup(self) -> None:
        """See `Scenario`."""
        self.one = self.vm()
        self.memory = self.file(pages=2)
        self.slot(self.one, self.memory, pages=2)
        self.vcpu = self.one.create_vcpu()
        self.write(self.vcpu, 0, "old")

    def actor_freeze(self) -> None:
        """Freezes, and unfreezes."""
        self.freeze(self.one, self.memory)

    def actor_vcpu(self) -> None:
        """Accesses a present page, and a hole."""
        self.read(self.vcpu, 0)
        self.read(self.vcpu, 1)

    def actor_punch(self) -> None:
        """Removes the page."""
        self.punch(self.memory, 0, 1)


IN_PLACE: Final[tuple[type[Scenario], ...]] = (
    *(ConvertInPlace, ConvertTwoVMs, Dma, DmaPunch, Split, Freeze),
)
"""Those that the command has."""
