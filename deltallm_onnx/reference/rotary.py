"""Rotary position embedding as GroupQueryAttention computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError

Array = npt.NDArray[Any]


def rotary(x: Array, positions: Array, cos_cache: Array, sin_cache: Array, *, interleaved: bool = False) -> Array:
    """Rotate the first 2·R channels of every head; the rest pass through.

    Channel pairs are (c, c + R), or (2c, 2c + 1) if interleaved:

        x' = x·cos − y·sin,   y' = y·cos + x·sin

    Every product and sum is a float32 operation of its own: a fused multiply-add would round differently.

    Args:
        x: queries or keys, float [B, H, S, D].
        positions: row of the caches per token, int [B, S].
        cos_cache: float [max positions, R], 2·R ≤ D.
        sin_cache: float [max positions, R].
        interleaved: how the pairs lie.

    Returns:
        float32 [B, H, S, D].

    Raises:
        DeltaLLMError: if the caches differ in shape, rotate more channels than there are, or end before a position.
    """
    if cos_cache.ndim != 2 or cos_cache.shape != sin_cache.shape:
        raise DeltaLLMError(
            f"cos_cache has shape {list(cos_cache.shape)} and sin_cache {list(sin_cache.shape)}: "
            "give both as [max positions, rotated channels / 2]."
        )
    rows, R = cos_cache.shape
    D = x.shape[-1]
    if 2 * R > D:
        raise DeltaLLMError(f"cos_cache has {R} columns for head size {D}: give at most {D // 2}.")
    if positions.size and not (positions.min() >= 0 and positions.max() < rows):
        raise DeltaLLMError(
            f"A token stands at position {positions.max()} but cos_cache has {rows} rows: give a longer cos_cache."
        )
    cos = cos_cache.astype(np.float32)[positions][:, None]  # [B, 1, S, R]
    sin = sin_cache.astype(np.float32)[positions][:, None]
    out = np.array(x, np.float32)
    first, second = (slice(0, 2 * R, 2), slice(1, 2 * R, 2)) if interleaved else (slice(0, R), slice(R, 2 * R))
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return out
