"""Numbers for people."""

from __future__ import annotations


def size_text(count: int) -> str:
    """A size for people: exact if a few digits suffice."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:g} {unit}" if size.is_integer() else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
