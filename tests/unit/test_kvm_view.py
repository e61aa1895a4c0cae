"""The map of a guest's pages: the meaning of each character, and the layout."""

from __future__ import annotations

import mmap
import os

from inaccfs.kvm import VM, pagemap_view
from inaccfs.kvm.pagemap_view import legend, render, states
from tests.unit.kvm_guests import MIB, PAGE, add_slot, guest, shim

# --- states ---------------------------------------------------------------------------


def test_a_page_for_each_way_it_can_be() -> None:
    with guest(16 * PAGE) as made:
        vcpu = made.vm.create_vcpu()
        for page in (1, 2, 5, 6):
            vcpu.write(page * PAGE, b"x")
        # Punched, and then written to by another process.
        made.file.punch(2, 3)
        os.pwrite(made.file.fd, b"x", 2 * PAGE)
        made.vm.set_memory_attributes(5 * PAGE, PAGE, private=False)
        made.vm.set_memory_attributes(9 * PAGE, PAGE, private=False)
        assert states(made.vm, 0, 20) == ".m-..dm..s......____"
        assert states(made.vm, 5, 3) == "dm."


def test_huge_mappings_have_capitals() -> None:
    with guest(4 * MIB, order=9) as made:
        made.vm.create_vcpu().write(0, b"x")
        made.vm.pre_fault_memory(3 * MIB, PAGE)
        assert states(made.vm, 0, 1024) == "M" * 1024
        made.vm.set_memory_attributes(0, PAGE, private=False)
        made.vm.create_vcpu().write(PAGE, b"x")
        found = states(made.vm, 0, 1024)
        assert (found[:2], found[512:]) == ("dm", "M" * 512)


def test_slots_apart_with_offsets_and_without_a_private_half() -> None:
    with shim() as made:
        file = made.memfd(8 * PAGE)
        with VM(made) as vm:
            add_slot(vm, file, gpa=4 * PAGE, size=2 * PAGE, private_offset=6 * PAGE)
            vm.set_user_memory_region(1, 8 * PAGE, 2 * PAGE, shared=mmap.mmap(-1, 8192))
            vm.create_vcpu().write(5 * PAGE, b"x")
            assert states(vm, 0, 12) == "____.m__ss__"


def test_without_get_memory_only_mappings_are_shown() -> None:
    with shim(refuses_memory=True) as made:
        file = made.memfd(4 * PAGE)
        with VM(made) as vm:
            add_slot(vm, file)
            vm.pre_fault_memory(PAGE, PAGE)
            assert states(vm, 0, 4) == ".m.."


def test_every_state_has_a_meaning() -> None:
    shown = {
        *pagemap_view.MAPPED.values(),
        pagemap_view.ALLOCATED,
        pagemap_view.HOLE,
        pagemap_view.SHARED,
        pagemap_view.DOUBLE,
        pagemap_view.NO_SLOT,
        pagemap_view.SEVERAL,
    }
    assert shown == set(pagemap_view.MEANINGS)


# --- layout ---------------------------------------------------------------------------


def test_a_row_has_64_pages_and_their_gpa() -> None:
    assert render("m" * 16 + "." * 54, 0x200).splitlines() == [
        f"0x000200000  {'m' * 16} {'.' * 16} {'.' * 16} {'.' * 16}",
        "0x000240000  ......",
    ]


def test_rows_that_are_the_same_are_counted() -> None:
    lines = render("M" * 512 + "m").splitlines()
    assert lines[0].endswith("MM")
    assert lines[1].strip() == "and 7 more"
    assert lines[2] == "0x000200000  m"


def test_a_map_that_is_too_long_is_merged() -> None:
    lines = render("m" * 1024 + "." * 1020 + "smmm").splitlines()
    assert lines[0] == "one character is 8 pages"
    assert lines[1].startswith("0x000000000  mmmm")
    assert lines[3].startswith("0x000400000  ....")
    assert lines[-1].endswith("..+")


def test_a_gib_fits() -> None:
    lines = render("M" * (1 << 18)).splitlines()
    assert lines[0] == "one character is 512 pages"
    assert lines[2].endswith("and 7 more")


def test_colours_only_when_asked_for() -> None:
    assert "\x1b" not in render("m.s") + legend("m.s")
    assert render("mms", colour=True) == (
        "0x000000000  \x1b[32mmm\x1b[0m\x1b[33ms\x1b[0m"
    )


def test_the_legend_has_the_states_and_their_counts() -> None:
    assert legend("mm.") == "m mapped by 4 KiB (2)   . not allocated (1)"


def test_everything_fits_into_80_columns() -> None:
    every = "".join(kind * 70 for kind in pagemap_view.MEANINGS)
    found = f"{render(every)}\n{legend(every)}"
    assert max(map(len, found.splitlines())) == 80
