"""Sizes of the packed caches `int8` and `int4`: what docs/cache-format.md says without looking at a byte."""

from __future__ import annotations

import dataclasses
from typing import get_args

from deltallm_onnx.config import PACKED_MINIMUM_EXACT, PackedFormat
from deltallm_onnx.errors import DeltaLLMError

#: Cache formats whose tensors are uint8 [B, Hkv, capacity, bytes_per_token].
PACKED_FORMATS: tuple[str, ...] = get_args(PackedFormat)

#: Stored rows have a multiple of so many channels.
CHANNEL_GROUP = 4
#: Bytes of a row beside its codes: a scale and a tag.
ROW_OVERHEAD = 4
TILE_ROWS = 16
BLOCK_ROWS = 128

#: Coded rows that wait for a block: one more than seals it, and one for a residual.
_WAITING_ROWS = BLOCK_ROWS + 2


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def bytes_per_token(cache_format: str, head_size: int) -> int:
    """The last dimension of packed cache tensors.

    Args:
        cache_format: "int8" or "int4".
        head_size: D, in channels.
    """
    padded = _round_up(head_size, CHANNEL_GROUP)
    if cache_format == "int8":
        return padded + ROW_OVERHEAD
    return max(padded // 2 + 4, -(-17 * padded // 32) + 2)


def padded_head_size(cache_format: str, row_size: int) -> int | None:
    """D', of which a cache has so many bytes per token; None where there is none."""
    # int4 rows are at least half as long as D', int8 rows longer.
    for padded in range(CHANNEL_GROUP, 2 * row_size + 1, CHANNEL_GROUP):
        if bytes_per_token(cache_format, padded) == row_size:
            return padded
    return None


def bytes_per_row(cache_format: str, row_size: int) -> int:
    """Bytes of a token outside sealed blocks, in a cache whose tensors have so many bytes per token.

    An `int4` cache keeps its sinks, its window and the rows that wait for a block in 8 bits.
    """
    padded = padded_head_size(cache_format, row_size) if cache_format in PACKED_FORMATS else None
    return row_size if padded is None else padded + ROW_OVERHEAD


@dataclasses.dataclass(frozen=True)
class PackedSizes:
    """A packed cache without its capacity.

    Attributes:
        cache_format: "int8" or "int4".
        head_size: D.
        sinks: first tokens that stay exact.
        window: W, newest tokens that stay exact.

    Raises:
        DeltaLLMError: for fewer than 8 sinks and window tokens together.
    """

    cache_format: str
    head_size: int
    sinks: int
    window: int

    def __post_init__(self) -> None:
        if self.exact < PACKED_MINIMUM_EXACT:
            raise DeltaLLMError(
                f"sinks + delta_window is {self.exact}: cache_format {self.cache_format} needs at least "
                f"{PACKED_MINIMUM_EXACT}."
            )

    @property
    def exact(self) -> int:
        """Slots of the sinks and the window."""
        return self.sinks + self.window

    @property
    def padded_head_size(self) -> int:
        """D', channels of a stored row."""
        return _round_up(self.head_size, CHANNEL_GROUP)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of 8-bit codes: D' codes, a scale and a tag."""
        return self.padded_head_size + ROW_OVERHEAD

    @property
    def bytes_per_token(self) -> int:
        """The last dimension of the cache tensors."""
        return bytes_per_token(self.cache_format, self.head_size)

    @property
    def block_bytes(self) -> int:
        """Bytes of a sealed block of 128 rows."""
        return BLOCK_ROWS * self.bytes_per_token

    @property
    def full_row_area(self) -> int:
        """N, rows of the row area of an int4 slab that is large enough."""
        return _round_up(self.exact + _WAITING_ROWS, TILE_ROWS)

    @property
    def smallest_whole_capacity(self) -> int:
        """Rows from which on the row area has its final size, so that a larger slab begins with the same bytes."""
        if self.cache_format == "int8":
            return TILE_ROWS
        return -(-self.full_row_area * self.row_bytes // self.bytes_per_token)

    def rows_in_area(self, capacity: int) -> int:
        """Rows of the row area of a slab."""
        if self.cache_format == "int8":
            return capacity
        return min(self.full_row_area, capacity * self.bytes_per_token // self.row_bytes)

    def blocks_that_fit(self, capacity: int) -> int:
        """Sealed blocks that a slab has room for."""
        behind = capacity * self.bytes_per_token - self.full_row_area * self.row_bytes
        return 0 if self.cache_format == "int8" else max(behind, 0) // self.block_bytes

    def sealed_blocks(self, coded_rows: int) -> int:
        """Blocks of a cache with so many coded rows in all."""
        return 0 if self.cache_format == "int8" else max(coded_rows - 1, 0) // BLOCK_ROWS

    def rows_needed(self, tokens: int) -> int:
        """Capacity that any cache of so many tokens fits in."""
        if self.cache_format == "int8":
            return tokens
        blocks = self.sealed_blocks(tokens - self.exact)
        if blocks == 0:
            needed = min(tokens, self.full_row_area) * self.row_bytes
        else:
            needed = self.full_row_area * self.row_bytes + blocks * self.block_bytes
        return -(-needed // self.bytes_per_token)
