"""Sealed blocks of 128 rows with 4-bit codes (docs/cache-format.md, `int4`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.packed_sizes import BLOCK_ROWS, PackedSizes

Array = npt.NDArray[Any]

_LEVELS = np.float32(15)
_NAN_BITS = 0x7E00


def quantize_groups(groups: Array) -> tuple[Array, Array, Array]:
    """4-bit codes of groups of numbers, each with a scale and a zero.

    Args:
        groups: float32 [groups, n].

    Returns:
        Codes uint8 [groups, n], scale and zero float16 [groups].
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        zero = groups.min(axis=1).astype(np.float16)
        scale = ((groups.max(axis=1) - zero.astype(np.float32)) / _LEVELS).astype(np.float16)
        bad = ~(np.isfinite(groups).all(axis=1) & np.isfinite(zero) & np.isfinite(scale))
        zero[bad] = np.array(_NAN_BITS, np.uint16).view(np.float16)
        scale[bad] = 0
        steps = np.rint((groups - zero.astype(np.float32)[:, None]) / scale.astype(np.float32)[:, None])
    codes = np.where(scale[:, None] == 0, 0, np.clip(np.where(np.isnan(steps), 0, steps), 0, _LEVELS))
    return codes.astype(np.uint8), scale, zero


def dequantize_groups(codes: Array, scale: Array, zero: Array) -> Array:
    """The sum zero + code · scale, float32 [groups, n]: a product and a sum, each rounded."""
    product = codes.astype(np.float32) * scale.astype(np.float32)[:, None]
    return np.asarray(zero.astype(np.float32)[:, None] + product)


def seal_keys(keys: Array, tags: Array, layout: PackedSizes) -> Array:
    """A key block: one scale and zero per channel.

    Args:
        keys: decoded rows, float32 [128, D].
        tags: uint16 [128].
        layout: of the slab.

    Returns:
        uint8 [128·bytes_per_token].
    """
    padded, D = layout.padded_head_size, layout.head_size
    codes, scale, zero = quantize_groups(keys.T)
    rows = np.zeros((BLOCK_ROWS, padded), np.uint8)
    rows[:, :D] = codes.T
    # [z][low, high][16 rows][D'/4 groups][4 channels]
    split = rows.reshape(4, 2, 16, padded // 4, 4)
    nibbles = (split[:, 0] | split[:, 1] << 4).transpose(0, 2, 1, 3)
    parts = [nibbles, _padded_halves(scale, padded), _padded_halves(zero, padded), tags.astype("<u2").view(np.uint8)]
    return _joined(parts, layout)


def open_keys(block: Array, layout: PackedSizes) -> tuple[Array, Array]:
    """Decoded keys float32 [128, D] and tags uint16 [128] of a key block."""
    padded, D = layout.padded_head_size, layout.head_size
    nibbles, scale, zero, tags = _split(block, [64 * padded, 2 * padded, 2 * padded, 2 * BLOCK_ROWS])
    by_group = nibbles.reshape(4, padded // 4, 16, 4).transpose(0, 2, 1, 3)
    rows = np.stack([by_group & 15, by_group >> 4], axis=1).reshape(BLOCK_ROWS, padded)
    keys = dequantize_groups(rows[:, :D].T, scale.view("<f2")[:D], zero.view("<f2")[:D]).T
    return keys, tags.view("<u2").copy()


def seal_values(values: Array, layout: PackedSizes) -> Array:
    """A value block: one scale and zero per row.

    Args:
        values: decoded rows, float32 [128, D].
        layout: of the slab.

    Returns:
        uint8 [128·bytes_per_token].
    """
    padded, D = layout.padded_head_size, layout.head_size
    codes, scale, zero = quantize_groups(values)
    rows = np.zeros((BLOCK_ROWS, padded), np.uint8)
    rows[:, :D] = codes
    # [i][low, high][4 rows][D' channels]
    split = rows.reshape(16, 2, 4, padded)
    nibbles = (split[:, 0] | split[:, 1] << 4).transpose(0, 2, 1)
    return _joined([nibbles, _padded_halves(scale, BLOCK_ROWS), _padded_halves(zero, BLOCK_ROWS)], layout)


def open_values(block: Array, layout: PackedSizes) -> Array:
    """Decoded values float32 [128, D] of a value block."""
    padded, D = layout.padded_head_size, layout.head_size
    nibbles, scale, zero = _split(block, [64 * padded, 2 * BLOCK_ROWS, 2 * BLOCK_ROWS])
    by_row = nibbles.reshape(16, padded, 4).transpose(0, 2, 1)
    rows = np.stack([by_row & 15, by_row >> 4], axis=1).reshape(BLOCK_ROWS, padded)
    return dequantize_groups(rows[:, :D], scale.view("<f2"), zero.view("<f2"))


def _padded_halves(x: Array, count: int) -> Array:
    padded = np.zeros(count, "<f2")
    padded[: x.size] = x
    return padded.view(np.uint8)


def _joined(parts: list[Array], layout: PackedSizes) -> Array:
    block = np.zeros(layout.block_bytes, np.uint8)
    joined = np.concatenate([part.reshape(-1) for part in parts])
    block[: joined.size] = joined
    return block


def _split(block: Array, sizes: list[int]) -> list[Array]:
    return np.split(block, np.cumsum(sizes))[: len(sizes)]
