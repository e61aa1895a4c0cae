"""A file in one process with rules of a test's choice, and its notifiers."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inaccfs.semantics import InPlaceV8, Semantics
from tests.unit.one_file import OneFile, mine, one_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from inaccfs.inprocess import File

PAGE = 4096
# In pages.
SIZE = 16
HUGE = 512

Event = tuple[str, int, int, str | None]


@dataclass
class World(OneFile):
    """A file, and a notifier that notes what it gets."""

    events: list[Event] = field(default_factory=list)
    # Called with each event, before it is answered.
    then: Callable[[str], object] = lambda event: None

    def listen(self, start: int, end: int, file: File | None = None) -> None:
        def note(event: str) -> Callable[[int, int, str | None], None]:
            def callback(start: int, end: int, kinds: str | None) -> None:
                self.events.append((event, start, end, kinds))
                self.then(event)

            return callback

        rules = self.mount.semantics
        options: dict[str, Any] = {
            "invalidate": note("invalidate"),
            "invalidate_start": note("start"),
            "invalidate_end": note("end"),
            "with_kinds": True,
        }
        file = file or self.file
        if rules.scope == "range":
            file.bind(start, end, **options)
        else:
            file.register_notifier(**options)

    @property
    def private(self) -> list[tuple[int, int]]:
        """The private ranges."""
        return [
            (one.offset, one.offset + one.count)
            for one in self.file.query_memory_attributes()
            if one.private
        ]


@contextmanager
def world(
    base: type[Semantics] = InPlaceV8, pages: int = SIZE, **chosen: object
) -> Iterator[World]:
    """A file with the rules of a version, but for some."""
    with one_file(mine(base, **chosen), pages) as it:
        yield World(**vars(it))
