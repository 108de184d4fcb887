"""How much of a packed cache is in use: what the header in its value tags says (docs/cache-format.md, "Rows")."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.packed_sizes import BLOCK_ROWS, TILE_ROWS, PackedSizes

#: Slots whose tags hold coded tokens and coded rows, low and high half each.
_COUNT_SLOTS = np.arange(1, 5)


def packed_bytes_in_use(values: npt.NDArray[np.uint8], sizes: PackedSizes, tokens: int) -> int:
    """Bytes of the rows and sealed blocks in use of one layer's value cache, which are those of its key cache too.

    Args:
        values: the value cache, uint8 [B, Hkv, capacity, bytes_per_token], as the operator left it.
        sizes: of the cache.
        tokens: tokens in it, the same in every row of the batch.
    """
    slabs = values.reshape(values.shape[0] * values.shape[1], -1)
    if tokens == 0:
        return 0
    if tokens <= sizes.exact:
        return slabs.shape[0] * tokens * sizes.row_bytes
    total = 0
    for tokens_low, tokens_high, rows_low, rows_high in _tags(slabs, sizes, values.shape[2]):
        coded_rows = int(rows_low) | int(rows_high) << 16
        blocks = sizes.sealed_blocks(coded_rows)
        rows = tokens - (int(tokens_low) | int(tokens_high) << 16) + coded_rows - blocks * BLOCK_ROWS
        total += rows * sizes.row_bytes + blocks * sizes.block_bytes
    return total


def _tags(slabs: npt.NDArray[np.uint8], sizes: PackedSizes, capacity: int) -> npt.NDArray[Any]:
    """The four counting tags of every slab, uint16 [slabs, 4]."""
    padded = sizes.padded_head_size
    if sizes.rows_in_area(capacity) >= TILE_ROWS:
        places = TILE_ROWS * padded + 2 * TILE_ROWS + 2 * _COUNT_SLOTS
    else:
        places = _COUNT_SLOTS * sizes.row_bytes + padded + 2
    low, high = slabs[:, places].astype(np.uint16), slabs[:, places + 1].astype(np.uint16)
    return low | high << 8
