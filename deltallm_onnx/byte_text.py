"""Byte counts for people."""

from __future__ import annotations


def byte_text(count: float) -> str:
    """A count with the decimal unit that suits it and up to four digits: 240 B, 1.44 kB, 4.942 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.95:  # what is more would be written as 1000
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
