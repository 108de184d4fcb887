"""The table of docs/memory.md on the C++ program, from the record of bench/runner_memory.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEADER = (
    "cache",
    "model",
    "peak MB",
    "peak of opening MB",
    "at the end MB",
    "of it mapped MB",
    "caches MB",
    "prompt tokens/s",
    "decode tokens/s",
)


def memory_table(record: Mapping[str, Any]) -> str:
    """A row per cache and form of the model, in Markdown; megabytes of 10⁶ bytes, tokens per second of CPU time."""
    lines = [_HEADER]
    for row in record["results"]:
        sizes = ("peak", "opened_peak", "resident", "resident_file", "kv")
        megabytes = (f"{row[f'{name}_bytes'] / 1e6:.0f}" for name in sizes)
        speeds = (f"{row[f'{name}_tokens_per_second']:.3g}" for name in ("prompt", "decode"))
        lines.append((row["cache"], row["form"], *megabytes, *speeds))
    rows = [f"| {' | '.join(cells)} |\n" for cells in lines]
    return "".join([rows[0], "|", "---|" * len(_HEADER), "\n", *rows[1:]])
