"""Where rows and blocks lie in a slab (docs/cache-format.md, "Rows" and `int4`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.packed_sizes import TILE_ROWS, PackedSizes

Array = npt.NDArray[Any]

#: Slots whose value tags hold the header.
HEADER_SLOTS = 6


class PackedLayout(PackedSizes):
    """The sizes of a slab, and the byte numbers of its parts."""

    def row_places(self, slots: Array, capacity: int, *, is_key: bool) -> tuple[Array, Array, Array]:
        """Where rows lie in their slab.

        Args:
            slots: int [n].
            capacity: of the slab.
            is_key: whether it holds keys.

        Returns:
            Byte numbers of the codes int [n, D'], of the scales int [n, 2] and of the tags int [n, 2].
        """
        padded, channel, halves = self.padded_head_size, np.arange(self.padded_head_size), np.arange(2)
        tile, r = slots[:, None] // TILE_ROWS, slots[:, None] % TILE_ROWS
        begin = tile * TILE_ROWS * self.row_bytes
        if is_key:
            codes = begin + channel // 4 * (4 * TILE_ROWS) + 4 * r + channel % 4
        else:
            codes = begin + r // 4 * (4 * padded) + 4 * channel + r % 4
        scales = begin + TILE_ROWS * padded + 2 * r + halves
        # Rows behind the last full tile lie one after the other.
        apart = (tile + 1) * TILE_ROWS > self.rows_in_area(capacity)
        alone = slots[:, None] * self.row_bytes
        return (
            np.where(apart, alone + channel, codes),
            np.where(apart, alone + padded + halves, scales),
            np.where(apart, alone + padded + 2 + halves, scales + 2 * TILE_ROWS),
        )

    def block_place(self, block: int) -> slice:
        """Bytes of a sealed block in its slab."""
        begin = self.full_row_area * self.row_bytes + block * self.block_bytes
        return slice(begin, begin + self.block_bytes)
