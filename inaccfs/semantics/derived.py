"""What follows from the rules: properties of the rules and of their message."""

from __future__ import annotations

from typing import Protocol


class _Rules(Protocol):
    """The rules that the properties are derived from."""

    @property
    def scope(self) -> str: ...
    @property
    def references(self) -> str: ...
    @property
    def memory_failure(self) -> str: ...
    @property
    def mmap(self) -> str: ...
    @property
    def attributes(self) -> str: ...
    @property
    def granule(self) -> str: ...
    @property
    def binding(self) -> str: ...
    @property
    def population(self) -> str: ...
    @property
    def frozen(self) -> str: ...
    @property
    def migration(self) -> str: ...


class Derived:
    """Properties of `Semantics`, and of the message with its rules."""

    __slots__ = ()

    @property
    def by_range(self: _Rules) -> bool:
        """Whether notifiers are bound to ranges, and not registered for files."""
        return self.scope == "range"

    @property
    def keeps_references(self: _Rules) -> bool:
        """Whether get-pfn takes a reference, or a lock, that put-pfn drops."""
        return self.references != "none"

    @property
    def locks_pages(self: _Rules) -> bool:
        """Whether get-pfn leaves a page locked until put-pfn."""
        return self.references == "locked"

    @property
    def mappable(self: _Rules) -> bool:
        """Whether mmap(2) of a file works."""
        return self.mmap != "refused"

    @property
    def in_place(self: _Rules) -> bool:
        """Whether files keep attributes: their pages are converted in place."""
        return self.attributes == "file"

    @property
    def by_huge_page(self: _Rules) -> bool:
        """Whether the unit of a file's memory is a huge page."""
        return self.granule == "huge page"

    @property
    def takes_writes(self: _Rules) -> bool:
        """Whether write(2) fills files."""
        return self.population == "write"

    # --- the commands of these rules that not all semantics have ----------------------

    @property
    def has_memory_failure(self: _Rules) -> bool:
        """Whether memory-failure poisons pages."""
        return self.memory_failure != "unknown"

    @property
    def has_commit_bind(self: _Rules) -> bool:
        """Whether bind can leave a binding to commit-bind."""
        return self.binding == "prepared"

    @property
    def has_populate(self: _Rules) -> bool:
        """Whether populate fills files."""
        return self.population in ("populate", "populate in place")

    @property
    def has_freeze(self: _Rules) -> bool:
        """Whether freeze and unfreeze freeze files."""
        return self.frozen != "unknown"

    @property
    def has_migrate(self: _Rules) -> bool:
        """Whether migrate moves pages."""
        return self.migration != "never"
