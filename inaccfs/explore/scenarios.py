"""The scenarios that come with the command."""

from __future__ import annotations

from typing import Final

from inaccfs.explore.proposals import IN_PLACE
from inaccfs.explore.scenario import Scenario
from inaccfs.explore.setups import OnePage, TwoVMsOfAFile


class Punch(OnePage):
    """Does a vCPU that writes and reads a page use it after a punch?"""

    def actor_vcpu(self) -> None:
        """Two accesses."""
        self.write(self.vcpu, 0, "new")
        self.read(self.vcpu, 0)

    def actor_punch(self) -> None:
        """Removes the page."""
        self.punch(self.memory, 0, 1)


class Mapped(OnePage):
    """Does a vCPU use a page that it has already mapped after a punch?"""

    mapped = True

    def actor_vcpu(self) -> None:
        """One access."""
        self.read(self.vcpu, 0)

    def actor_punch(self) -> None:
        """Removes the page."""
        self.punch(self.memory, 0, 1)


class LateSlot(Scenario):
    """Which events does a second VM get that makes its slot during a punch?"""

    name = "late-slot"

    def setup(self) -> None:
        """See `Scenario`."""
        self.first, self.late = self.vm("first"), self.vm("late")
        self.memory = self.file(pages=2)
        self.slot(self.first, self.memory, page=0)
        self.vcpu = self.late.create_vcpu()
        self.write(self.first.create_vcpu(), 0, "old")

    def actor_punch(self) -> None:
        """Removes both pages."""
        self.punch(self.memory, 0, 2)

    def actor_late(self) -> None:
        """A slot, and an access."""
        self.slot(self.late, self.memory, page=1)
        self.read(self.vcpu, 0)


class Convert(OnePage):
    """Does a fault map a page as private after the VMM has made it shared?"""

    def actor_vcpu(self) -> None:
        """A private fault."""
        self.write(self.vcpu, 0, "new")

    def actor_convert(self) -> None:
        """Sets attributes, and punches."""
        self.convert(self.one, 0, 1, private=False)


class ConvertBack(OnePage):
    """Is a page empty after it was shared for a while?"""

    name = "convert-back"
    mapped = True

    def actor_vmm(self) -> None:
        """Converts the page to shared, and back."""
        self.convert(self.one, 0, 1, private=False)
        self.convert(self.one, 0, 1, private=True)

    def actor_vcpu(self) -> None:
        """One access."""
        self.read(self.vcpu, 0)


class DeleteSlot(OnePage):
    """Can a slot be deleted while its page is punched?"""

    name = "delete-slot"
    mapped = True

    def actor_delete(self) -> None:
        """Deletes the slot."""
        self.delete_slot(self.one)

    def actor_punch(self) -> None:
        """Removes the page."""
        self.punch(self.memory, 0, 1)


class DeleteSlotVcpu(OnePage):
    """Can a slot be deleted while its page is punched and a vCPU reads it?"""

    name = "delete-slot-vcpu"

    def actor_vcpu(self) -> None:
        """One access."""
        self.read(self.vcpu, 0)

    actor_delete = DeleteSlot.actor_delete
    actor_punch = DeleteSlot.actor_punch


class TwoVcpus(Scenario):
    """Do two vCPUs that read one page use it after a punch?"""

    name = "two-vcpus"

    def setup(self) -> None:
        """See `Scenario`."""
        self.one = self.vm()
        self.memory = self.file(pages=1)
        self.slot(self.one, self.memory)
        self.vcpus = [self.one.create_vcpu() for _ in range(2)]
        self.write(self.vcpus[0], 0, "old")
        self.unmap(self.one, 0, 1)

    def actor_vcpu0(self) -> None:
        """One access."""
        self.read(self.vcpus[0], 0)

    def actor_vcpu1(self) -> None:
        """One access."""
        self.read(self.vcpus[1], 0)

    def actor_punch(self) -> None:
        """Removes the page."""
        self.punch(self.memory, 0, 1)


class TwoSlots(Scenario):
    """Does a punch of one slot's page affect another slot of the same file?"""

    name = "two-slots"

    def setup(self) -> None:
        """See `Scenario`."""
        self.one = self.vm()
        self.memory = self.file(pages=3)
        self.slot(self.one, self.memory, page=0)
        self.slot(self.one, self.memory, page=1, number=1, gfn=4)
        self.vcpu = self.one.create_vcpu()
        self.write(self.vcpu, 0, "first")
        self.write(self.vcpu, 4, "second")

    def actor_vcpu(self) -> None:
        """One access to each."""
        self.read(self.vcpu, 0)
        self.read(self.vcpu, 4)

    def actor_punch(self) -> None:
        """Removes the page of the second slot."""
        self.punch(self.memory, 1, 2)


class TwoVMs(TwoVMsOfAFile):
    """Is a VM safe while a punch removes pages of two VMs?"""

    name = "two-vms"

    def actor_punch(self) -> None:
        """Removes both pages."""
        self.punch(self.memory, 0, 2)

    def actor_vcpu(self) -> None:
        """One access."""
        self.read(self.vcpu, 0)


class PeerDies(TwoVMs):
    """Does a punch end if a VM dies at any of its steps?"""

    name = "peer-dies"

    def actor_death(self) -> None:
        """Kills the other VM."""
        self.kill(self.second)


class PeerSilent(OnePage):
    """What happens to a VM that answers too late, and is disconnected?"""

    name = "peer-silent"
    mapped = True
    evicts = True

    def actor_punch(self) -> None:
        """Removes the page."""
        self.punch(self.memory, 0, 1)

    def actor_vcpu(self) -> None:
        """One access."""
        self.read(self.vcpu, 0)


class PutLate(Scenario):
    """Are references safe that are put after the fault has continued?"""

    name = "put-late"

    def setup(self) -> None:
        """See `Scenario`."""
        self.one = self.vm(puts_late=True)
        self.memory = self.file(pages=1)
        self.slot(self.one, self.memory)
        self.vcpu = self.one.create_vcpu()

    def actor_vcpu(self) -> None:
        """One access."""
        self.write(self.vcpu, 0, "new")

    def actor_punch(self) -> None:
        """Removes the page."""
        self.punch(self.memory, 0, 1)


class Grow(Scenario):
    """Is the first truncate of a file safe against allocations and get-pfn?"""

    def setup(self) -> None:
        """See `Scenario`."""
        self.memory = self.file(pages=0)
        self.user = self.vm("user").client.file(self.memory)

    def actor_truncate(self) -> None:
        """Once."""
        self.truncate(self.memory, 2)

    def actor_allocate(self) -> None:
        """Of a page."""
        self.allocate(self.memory, 0, 1)

    def actor_user(self) -> None:
        """get-pfn and put-pfn."""
        self.get_and_put(self.user, 1)


class Poison(OnePage):
    """Is memory-failure of a page safe against a fault and a punch?"""

    def actor_poison(self) -> None:
        """memory-failure."""
        self.memory_failure(self.one, self.memory, 0)

    def actor_vcpu(self) -> None:
        """One access."""
        self.read(self.vcpu, 0)

    def actor_punch(self) -> None:
        """Removes the page."""
        self.punch(self.memory, 0, 1)


_ALL: Final[tuple[type[Scenario], ...]] = (
    *(Punch, Mapped, TwoVcpus, LateSlot, Convert, ConvertBack, DeleteSlot),
    *(DeleteSlotVcpu, TwoSlots, TwoVMs, PeerDies, PeerSilent, PutLate, Grow, Poison),
    *IN_PLACE,
)

SCENARIOS: Final[dict[str, type[Scenario]]] = {
    one.name or one.__name__.lower(): one for one in _ALL
}
"""By the words of the command line."""
