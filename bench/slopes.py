"""What a longer context costs, taken from the times at several lengths: slopes, so the cost of calling drops out.

A decode step takes a + c·past: c is nanoseconds per past token and layer. A prompt of S tokens takes
b·S + c·S·(S + 1)/2: its rows are read, converted and written once each (b), and every query meets the keys before it
(c). So its time per token is linear in the mean number of keys per query, and c is the slope: nanoseconds per query and
key, over all heads of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deltallm_onnx.bench import Spread
from deltallm_onnx.errors import DeltaLLMError

Result = Mapping[str, Any]
#: Keys per query, and the number of queries that the time is shared by.
Axis = Callable[[Result], tuple[float, float]]


def per_past_token(result: Result) -> tuple[float, float]:
    """The axis of a decode step: its past, and the step as a whole."""
    return float(result["past_tokens"]), 1.0


def per_query_and_key(result: Result) -> tuple[float, float]:
    """The axis of a prompt: the mean number of keys per query, and its tokens."""
    new = float(result["new_tokens"])
    return float(result["past_tokens"]) + (new + 1) / 2, new


def slopes(results: Sequence[Result], axis: Axis) -> dict[str, Spread]:
    """Nanoseconds per key of every contender, from the shortest to the longest of these results.

    Args:
        results: at two lengths at least.
        axis: `per_past_token` or `per_query_and_key`.

    Returns:
        By name: the slope between the medians, and those of the flattest and the steepest line between the quartiles.

    Raises:
        DeltaLLMError: for results at less than two lengths.
    """
    ordered = sorted(results, key=axis)
    keys = [axis(result)[0] for result in ordered]
    if not keys or keys[0] == keys[-1]:
        raise DeltaLLMError("A slope needs results at two lengths: give --past or --prompt two numbers.")
    near, far = (_times(ordered[i], axis) for i in (0, -1))
    between = keys[-1] - keys[0]
    return {
        name: Spread(
            (far[name].median - near[name].median) / between,
            (far[name].lower - near[name].upper) / between,
            (far[name].upper - near[name].lower) / between,
        )
        for name in far
        if name in near
    }


def _times(result: Result, axis: Axis) -> dict[str, Spread]:
    """Nanoseconds per query of every contender."""
    queries = axis(result)[1]
    return {row["name"]: Spread.from_dict(row["microseconds"]).scaled(1e3 / queries) for row in result["contenders"]}
