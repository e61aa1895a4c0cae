"""A simulated IOMMU, and devices that use memory whenever they like and cannot fault.

The second kind of user of a file's pages, after `inaccfs.kvm`: an ordinary client of
the control socket, too. `Iommu` is the way in; docs/simulated-iommu.md says more.
"""

from __future__ import annotations

from inaccfs.iommu.area import Area, Learns
from inaccfs.iommu.device import Device
from inaccfs.iommu.iommu import WAYS, Iommu
from inaccfs.iommu.stats import Stats

__all__ = ["WAYS", "Area", "Device", "Iommu", "Learns", "Stats"]
