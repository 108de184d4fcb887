"""Counts as people write them."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """A count with its noun, such as "1 sink" and "2 sinks"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
