"""Rows and blocks of one slab, read and written byte by byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.reference.packed_layout import PackedLayout
from deltallm_onnx.reference.packed_rows import Row

Array = npt.NDArray[Any]

#: Key codes lie shifted, as the unsigned operand that integer dot products want.
_KEY_CODE_SHIFT = np.uint8(128)


class Slab:
    """The keys, or the values, of one batch row and KV head.

    Args:
        data: uint8 [capacity, bytes_per_token], changed in place.
        layout: its sizes.
        is_key: whether it holds keys.
    """

    def __init__(self, data: Array, layout: PackedLayout, *, is_key: bool) -> None:
        self.layout = layout
        self.capacity = data.shape[0]
        self._is_key = is_key
        self._bytes = data.reshape(-1)
        self._all_places = layout.row_places(np.arange(self.rows), self.capacity, is_key=is_key)

    @property
    def rows(self) -> int:
        """Rows of the row area."""
        return self.layout.rows_in_area(self.capacity)

    def read(self, slot: int) -> Row:
        """One row."""
        codes, scales, tags = self._read([slot])
        return Row(codes[0], scales[0], int(tags[0]))

    def decode(self, slots: Sequence[int]) -> tuple[Array, Array]:
        """Decoded rows float32 [n, D], and their tags int64 [n]."""
        codes, scales, tags = self._read(slots)
        with np.errstate(invalid="ignore"):
            return codes.astype(np.float32) * scales.astype(np.float32)[:, None], tags.astype(np.int64)

    def write(self, slot: int, row: Row) -> None:
        """Store a row with its tag; channels from D on get code 0."""
        codes, scale, _ = self._places([slot])
        padded = np.zeros(codes.size, np.int16)
        padded[: row.codes.size] = row.codes
        self._bytes[codes[0]] = padded.astype(np.uint8) ^ (_KEY_CODE_SHIFT * np.uint8(self._is_key))
        self._bytes[scale[0]] = np.array([row.scale], "<f2").view(np.uint8)
        self.write_tag(slot, row.tag)

    def read_tag(self, slot: int) -> int:
        """The tag of one row."""
        return self.read(slot).tag

    def write_tag(self, slot: int, tag: int) -> None:
        """Change nothing but a tag."""
        _, _, place = self._places([slot])
        self._bytes[place[0]] = np.array([tag], "<u2").view(np.uint8)

    def block(self, index: int) -> Array:
        """The bytes of a sealed block, uint8 [128·bytes_per_token], a view."""
        return self._bytes[self.layout.block_place(index)]

    def copy_rows(self, other: Slab) -> None:
        """Take over the rows of a slab of the same layout and role, as many as both have."""
        count = min(self.rows, other.rows)
        for mine, theirs in zip(self._all_places, other._all_places, strict=True):
            self._bytes[mine[:count]] = other._bytes[theirs[:count]]

    def mark_rows(self, slots: Sequence[int]) -> None:
        """Set every byte of rows and their tags to one: for masks of what is in use."""
        for place in self._places(slots):
            self._bytes[place] = 1

    def mark_tags(self, slots: Sequence[int]) -> None:
        """Set the bytes of tags to one."""
        _, _, tags = self._places(slots)
        self._bytes[tags] = 1

    def _read(self, slots: Sequence[int]) -> tuple[Array, Array, Array]:
        """Codes int8 [n, D], scales float16 [n] and tags uint16 [n]."""
        codes, scales, tags = self._places(slots)
        stored = self._bytes[codes[:, : self.layout.head_size]]
        if self._is_key:
            stored = stored ^ _KEY_CODE_SHIFT  # adds 128 modulo 256
        return stored.view(np.int8), self._bytes[scales].view("<f2")[:, 0], self._bytes[tags].view("<u2")[:, 0]

    def _places(self, slots: Sequence[int]) -> tuple[Array, Array, Array]:
        codes, scales, tags = self._all_places
        chosen = np.array(slots, np.int64)
        return codes[chosen], scales[chosen], tags[chosen]
