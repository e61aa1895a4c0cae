"""A simulated IOMMU, and devices that access memory at any time and cannot fault.

After `inaccfs.kvm` this is the second kind of user of a file's pages, and also an
ordinary client of the control socket. Start with `Iommu`; docs/simulated-iommu.md says
more.
"""

from __future__ import annotations

from inaccfs.iommu.area import GETS_EVENTS, Area, Learns
from inaccfs.iommu.device import Device
from inaccfs.iommu.iommu import WAYS, Iommu
from inaccfs.iommu.stats import Stats

__all__ = ["GETS_EVENTS", "WAYS", "Area", "Device", "Iommu", "Learns", "Stats"]
