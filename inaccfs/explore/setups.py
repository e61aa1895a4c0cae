"""What several scenarios begin with."""

from __future__ import annotations

from inaccfs.explore.scenario import Scenario


class OnePage(Scenario):
    """A VM with one page of a file. The page has been written, and may be mapped."""

    mapped = False

    def setup(self) -> None:
        """See `Scenario`."""
        self.one = self.vm()
        self.memory = self.file(pages=1)
        self.slot(self.one, self.memory)
        self.vcpu = self.one.create_vcpu()
        self.write(self.vcpu, 0, "old")
        if not self.mapped:
            self.unmap(self.one, 0, 1)


class TwoVMsOfAFile(Scenario):
    """Two VMs with pages of one file."""

    def setup(self) -> None:
        """See `Scenario`."""
        self.first, self.second = self.vm("first"), self.vm("second")
        self.memory = self.file(pages=2)
        self.slot(self.first, self.memory, page=0)
        self.slot(self.second, self.memory, page=1)
        self.vcpu = self.first.create_vcpu()
        self.write(self.vcpu, 0, "old")
        self.write(self.second.create_vcpu(), 0, "other")
