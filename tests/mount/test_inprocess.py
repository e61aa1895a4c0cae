"""The shim in one process does what a daemon does: one script, run on both."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

import inaccfs
from inaccfs.inprocess import Mount
from inaccfs.semantics import VERSIONS
from inaccfs.syscalls import FALLOC_FL_KEEP_SIZE, PUNCH, fallocate
from tests.mount import support

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.semantics import Semantics

PAGE = 4096
PAGES = 64


@dataclass
class Script:
    """The calls on a file, and all their outcomes."""

    shim: Any
    fd: int
    fallocate: Callable[[int, int, int, int], object]
    ftruncate: Callable[[int, int], object]
    seen: list[object] = field(default_factory=list)
    # An error event needs no answer, so it may come before or after the command's
    # reply.
    errors: list[object] = field(default_factory=list)

    def run(self) -> list[object]:
        """Make each call; record its outcome and the fetched pages."""
        file = self.shim.file(self.fd)
        notifier = self._register(file)
        for call in self._calls(file):
            try:
                result: object = call()
            except OSError as exc:
                result = exc.errno
            fetched = [
                (each.offset, each.pfn, each.count, each.order)
                for each in self.shim.query_pins().extents
            ]
            self.seen.append((result, fetched))
        notifier.unregister()
        self._try(lambda: self.fallocate(self.fd, PUNCH, 0, PAGE))
        file.close()
        return [*self.seen, *self.errors]

    def _register(self, file: Any) -> Any:
        callbacks = {
            name: self._note(name, self.seen)
            for name in ("invalidate", "invalidate_start", "invalidate_end")
        }
        callbacks["error"] = self._note("error", self.errors)
        if self.shim.query_semantics().scope == "range":
            return file.bind(4, 40, **callbacks)
        return file.register_notifier(**callbacks)

    def _note(self, name: str, seen: list[object]) -> Callable[[int, int], None]:
        return lambda start, end: seen.append((name, start, end))

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as exc:
            self.seen.append(exc.errno)

    def _calls(self, file: Any) -> Iterator[Callable[[], object]]:
        """Each call returns only what is the same in every run."""
        keeps = self.shim.query_semantics().keeps_references

        def get(offset: int, count: int) -> object:
            found = [_plain(each) for each in file.get_pfns(offset, count)]
            for _, pfn, pages, _ in found if keeps else ():
                file.put_pfn(pfn, pages)
            return found

        yield lambda: self.fallocate(self.fd, FALLOC_FL_KEEP_SIZE, 0, 32 * PAGE)
        yield lambda: self.fallocate(self.fd, 0, 100, PAGE)
        yield lambda: self.fallocate(self.fd, 0, 0, 80 * PAGE)
        yield lambda: get(8, 4)
        yield lambda: get(2, 4)
        yield lambda: get(38, 4)
        yield lambda: get(100, 1)
        yield lambda: self.fallocate(self.fd, PUNCH, 9 * PAGE, PAGE)
        yield lambda: self.fallocate(self.fd, PUNCH, 0, PAGES * PAGE)
        yield lambda: self.fallocate(self.fd, PUNCH, 50 * PAGE, PAGE)
        yield lambda: self.fallocate(self.fd, PUNCH, 100, PAGE)
        yield lambda: get(8, 4)
        yield lambda: file.memory_failure(10)
        yield lambda: get(10, 1)
        yield lambda: file.put_pfn(1)
        yield lambda: file.register_notifier(lambda *_: None).unregister()
        yield lambda: file.bind(8, 9, lambda *_: None).unregister()
        yield lambda: file.bind(60, 61, lambda *_: None).unregister()
        yield lambda: self.ftruncate(self.fd, 16 * PAGE)


def _plain(extent: Any) -> tuple[int, int, int, int]:
    return extent.offset, extent.pfn, extent.count, extent.order


# The script's file is smaller than a huge page.
SMALL = [version for version in VERSIONS if version.granule == "page"]


@pytest.mark.parametrize("version", SMALL, ids=lambda each: each.name)
def test_a_script_comes_to_the_same_as_with_a_daemon(version: type[Semantics]) -> None:
    with Mount(version()) as here:
        fd = here.memfd_create("script", PAGES * PAGE)
        client = here.connect()
        found = Script(client, fd, here.fallocate, here.ftruncate).run()
        client.close()
        os.close(fd)
    with (
        support.mounted(semantics=version.name, pfn_source="simulated") as mount,
        inaccfs.connect(mount.control) as shim,
    ):
        fd = shim.memfd_create("script", size=PAGES * PAGE)
        expected = Script(shim, fd, fallocate, os.ftruncate).run()
        os.close(fd)
    assert found == expected
