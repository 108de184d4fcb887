"""What methods are compared at: the same bytes kept, and the same bytes read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PLAIN, KIVI, STREAMING, QUEST = "plain rows", "KIVI", "StreamingLLM", "Quest"
H2O, NEWEST_HITTERS = "H2O", "H2O, newest queries first"
DELTA, CALIBRATED = "delta, one θ", "delta, calibrated"
#: In the order of the tables.
FAMILIES = (PLAIN, KIVI, STREAMING, H2O, NEWEST_HITTERS, QUEST, DELTA, CALIBRATED)

#: Costs, and how many times smaller than with float32 rows they shall be.
COSTS, RATIOS = ("kv_bytes_per_token", "kv_bytes_read"), (3, 4, 8, 12, 16, 32)


def best(results: Sequence[Mapping[str, Any]], family: str, cost: str, budget: float) -> int | None:
    """The setting of a family with the smallest divergence that costs no more than a budget; None without one."""
    within = [at for at, one in enumerate(results) if one["family"] == family and one[cost] <= budget]
    return min(within, key=lambda at: (results[at]["kl"], results[at][cost]), default=None)
