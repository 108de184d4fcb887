"""The table of docs/performance.md on instructions, from the record of bench/arm64_counts.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
Row = Mapping[str, Any]

#: What the others are compared with.
_PEER = "GQA float32"


def per_token(row: Row, record: Record, layers: Mapping[str, Row]) -> float:
    """Instructions of a decoded token: an ordinary call, and its share of sealing the blocks of an int4 cache.

    The rows that wait for their block are read in 8 bits, and grow in number from one sealing to the next: between
    the calls before and behind it lies the mean.

    Args:
        row: of a layer.
        record: of `bench.arm64_counts`.
        layers: all of that length, by name.
    """
    if "ours int4" not in layers or not row["name"].startswith("ours int4"):
        return float(row["instructions"])
    every, calls = record["sealed_every"], layers["ours int4"]["calls"]
    at = calls.index(max(calls[1:-1]))
    sealing = calls[at] - calls[at - 1]
    if row["name"] == "ours int4":
        return float((calls[at - 1] + calls[at + 1]) / 2 + sealing / every)
    # Two tokens share a row, and a block lasts twice as long; these calls lie halfway between two sealings.
    return float(row["instructions"] + sealing / (2 * every))


def per_token_table(record: Record, processor: str) -> str:
    """Every layer on a processor: instructions per token at every length, and per token in the cache.

    Args:
        record: of `bench.arm64_counts`.
        processor: as qemu names it.

    Returns:
        Markdown. Counts are in thousands, but those per past token; brackets hold the count of GroupQueryAttention
        with a float32 cache over this one.
    """
    (result,) = (found for found in record["results"] if found["processor"] == processor)
    by_past: dict[int, dict[str, Row]] = {}
    for row in result["layers"]:
        by_past.setdefault(row["past_tokens"], {})[row["name"]] = row
    counts = {
        past: {name: per_token(row, record, layers) for name, row in layers.items()} for past, layers in by_past.items()
    }
    shortest, longest = min(counts), max(counts)
    header = [processor, *(f"{past} past tokens" for past in counts)]
    header += ["per past token"] if longest > shortest else []
    lines = [header]
    for name in counts[longest]:
        cells = [name, *(_against(found.get(name), found.get(_PEER)) for found in counts.values())]
        if longest > shortest and name in counts[shortest]:
            slope = (counts[longest][name] - counts[shortest][name]) / (longest - shortest)
            cells.append(f"{slope:.0f}")
        lines.append(cells)
    rows = [f"| {' | '.join(cells)} |\n" for cells in lines]
    return "".join([rows[0], "|", "---|" * len(header), "\n", *rows[1:]])


def _against(count: float | None, peer: float | None) -> str:
    if count is None:
        return "–"
    ratio = "" if peer is None else f" ({peer / count:.3g}×)"
    return f"{count / 1e3:.0f} k{ratio}"
