"""Which source of frames a mount has: real ones where they are shown."""

from __future__ import annotations

import errno
import os
from typing import Final

import pytest

from inaccfs.errors import OptionError
from inaccfs.shim import framesource
from inaccfs.shim.frameoptions import SimulatedMemory
from tests.unit.pagemap_files import make_source, open_file
from tests.unit.test_pins import without

CAP_SYS_ADMIN: Final = 21


def test_frames_are_real_where_they_are_shown() -> None:
    make_source().close()
    for wanted in ("auto", "pagemap"):
        source = framesource.choose(wanted, SimulatedMemory(), large_folios=False)
        assert source.name == "pagemap"
        source.close()
    made = framesource.choose("simulated", SimulatedMemory(), large_folios=False)
    assert made.name == "simulated"


def test_frames_are_made_up_where_they_are_not_shown() -> None:
    fds = len(os.listdir("/proc/self/fd"))
    with without(CAP_SYS_ADMIN):
        made = framesource.choose("auto", SimulatedMemory(), large_folios=False)
        assert made.name == made.pinning == "simulated"
        with pytest.raises(OptionError, match="CAP_SYS_ADMIN") as caught:
            framesource.choose("pagemap", SimulatedMemory(), large_folios=False)
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_frames_are_made_up_without_kpageflags(monkeypatch: pytest.MonkeyPatch) -> None:
    make_source().close()
    opened = os.open

    def no_kpageflags(path: str, flags: int) -> int:
        if path == "/proc/kpageflags":
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return opened(path, flags)

    fds = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", no_kpageflags)
    made = framesource.choose("auto", SimulatedMemory(), large_folios=False)
    assert made.name == "simulated"
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_source_leaves_nothing_open() -> None:
    make_source().close()
    fds = len(os.listdir("/proc/self/fd"))
    with open_file() as file:
        file.fetch(0, 1000)
        file.punch(10, 20)
    assert len(os.listdir("/proc/self/fd")) == fds
