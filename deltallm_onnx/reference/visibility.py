"""Which keys a query sees, and which of them as k̂: docs/spec.md section 3."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.config import PAPER_WINDOW_FRACTION

Array = npt.NDArray[Any]

#: "sliding" is docs/spec.md section 3; "block" reproduces the lineage's block-diagonal window.
WINDOW_KINDS = ("sliding", "block")


def lineage_block_size(prompt: int) -> int:
    """Block size of the lineage's block-diagonal window for a prompt of so many tokens, at least 1."""
    return max(1, round(PAPER_WINDOW_FRACTION * prompt))


def coded_end(tokens: Array, window: int, kind: str = "sliding") -> Array:
    """First position that the newest of `tokens` tokens sees exactly: what lies before it is coded, sinks apart.

    Args:
        tokens: int, number of tokens counted from the first real one; any shape.
        window: window in tokens, or the block size.
        kind: "sliding": the newest `window` tokens are exact. "block": the tokens of the newest token's own block,
            blocks of `window` tokens counted from the first real one.
    """
    if kind == "block" and window > 0:
        return np.asarray(np.maximum(tokens - 1, 0) // window * window)
    return np.asarray(tokens - window)


def visible_keys(rows: Array, start: int, length: int, local_window: int) -> Array:
    """Keys before `length` that each query sees by causality, padding and the model's own window.

    Args:
        rows: int [S], the queries' row numbers in the cache.
        start: first real token.
        length: first row that holds nothing.
        local_window: the model's sliding window in tokens; −1 = none.

    Returns:
        bool [S, length]; a query before `start` sees nothing.
    """
    i, j = rows[:, None], np.arange(length)[None]
    visible = (j >= start) & (j <= i)
    if local_window >= 0:
        visible &= j > i - local_window
    return np.asarray(visible)


def held_keys(
    rows: Array, start: int, length: int, past: int, *, window: int, sinks: int, prefill: str, kind: str = "sliding"
) -> Array:
    """Keys before `length` that each query reads as k̂ (if it sees them at all).

    Args:
        rows: int [S], the queries' row numbers in the cache.
        start: first real token.
        length: first row that holds nothing. A query behind it (right padding) reads like the last real one.
        past: rows the cache held before the call.
        window: delta window in tokens, or the block size.
        sinks: first tokens that stay exact.
        prefill: "exact": a call with S > 1 reads as k̂ only what was coded before it. "delta": every query by its own
            window.
        kind: "sliding" or "block".

    Returns:
        bool [S, length].
    """
    newest = np.minimum(rows + 1, length)
    if prefill == "exact" and rows.size > 1:
        newest = np.minimum(newest, past)
    end = start + coded_end(newest - start, window, kind)
    j = np.arange(length)[None]
    return np.asarray((j >= start + sinks) & (j < end[:, None]))
