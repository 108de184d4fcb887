"""Key/value cache buffers: bound as past and present at once where the operator updates them in place.

The capacity rule is docs/spec.md section 7, "Lengths": present has max(capacity of past, total length) rows; a packed
cache may need more (docs/cache-format.md).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from deltallm_onnx.config import FloatFormat
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.packed_sizes import PACKED_FORMATS, TILE_ROWS, PackedSizes, bytes_per_token
from deltallm_onnx.runtime import huge_pages
from deltallm_onnx.runtime.packed_usage import packed_bytes_in_use

#: A buffer that is full grows to this share above the tokens it must hold, …
GROWTH = 1.125
#: … rounded up to a multiple of so many tokens: each growth copies the cache once.
GROWTH_TOKENS = 32
#: Buffers have a multiple of so many rows, whole tiles of a packed cache: growing is then copying bytes.
CAPACITY_ROWS = TILE_ROWS


def cache_spec(cache_format: str, head_size: int) -> tuple[np.dtype[Any], int]:
    """Element type and last dimension of a cache tensor [B, Hkv, capacity, last].

    Args:
        cache_format: as in `DeltaConfig.cache_format`.
        head_size: D, in channels.

    Raises:
        DeltaLLMError: for an unknown format.
    """
    if cache_format in get_args(FloatFormat):
        return np.dtype(cache_format), head_size
    if cache_format in PACKED_FORMATS:
        return np.dtype(np.uint8), bytes_per_token(cache_format, head_size)
    formats = (*get_args(FloatFormat), *PACKED_FORMATS)
    raise DeltaLLMError(f"There is no cache format {cache_format!r}: choose one of {', '.join(formats)}.")


@dataclasses.dataclass(frozen=True)
class CacheTensor:
    """One key or value cache of one layer, as the model declares it.

    Attributes:
        past: name of the model input [B, Hkv, P, last].
        present: name of the model output [B, Hkv, ≥ P+S, last].
        dtype: element type.
        kv_heads: Hkv.
        last: size of the last axis, `cache_spec`'s.
        in_place: whether one buffer may be bound to both names. Otherwise the present of one call is the past of the
            next, and holds exactly the rows in use.
        packed: the sizes of a packed cache; None for one row of numbers per token.
        rows: capacity, where the model fixes it; None where buffers grow.
    """

    past: str
    present: str
    dtype: np.dtype[Any]
    kv_heads: int
    last: int
    in_place: bool
    packed: PackedSizes | None = None
    rows: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all KV heads."""
        return self.kv_heads * self.last * self.dtype.itemsize

    def capacity_for(self, tokens: int) -> int:
        """Rows of a buffer for so many tokens, a multiple of CAPACITY_ROWS where the model does not fix them.

        Raises:
            DeltaLLMError: for more tokens than fixed rows have room for.
        """
        if self.rows is not None:
            needed = tokens if self.packed is None else self.packed.rows_needed(tokens)
            if needed > self.rows:
                raise DeltaLLMError(
                    f"The model has caches of {self.rows} rows, and {tokens} tokens need {needed}: make the text "
                    "shorter, or convert the model with a larger --context."
                )
            return self.rows
        rows = tokens
        if self.packed is not None:
            # From the smallest whole capacity on, a larger buffer begins with the bytes of a smaller one.
            rows = max(self.packed.rows_needed(tokens), self.packed.smallest_whole_capacity)
        return math.ceil(rows / CAPACITY_ROWS) * CAPACITY_ROWS


class KVCache:
    """The caches of one running sequence batch.

    Args:
        tensors: every cache of the model.
        batch: B.
        limit: tokens that will never be exceeded, if known: growth stops there.
    """

    def __init__(self, tensors: Sequence[CacheTensor], *, batch: int = 1, limit: int | None = None) -> None:
        self._tensors = tuple(tensors)
        self._batch = batch
        self._limit = limit
        self._length = 0
        self._values = {
            tensor.past: ort.OrtValue.ortvalue_from_numpy(self._empty(tensor, tensor.rows or 0)) for tensor in tensors
        }

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._length

    @property
    def bytes_in_use(self) -> int:
        """Bytes of what is in use, all layers, keys and values; merged runs take fewer rows than tokens."""
        return sum(self._bytes_in_use(tensor) for tensor in self._tensors)

    @property
    def bytes_allocated(self) -> int:
        """Bytes of the buffers held between calls, all layers, keys and values."""
        return self._batch * sum(self.capacity(tensor) * tensor.row_bytes for tensor in self._tensors)

    def capacity(self, tensor: CacheTensor) -> int:
        """Rows that the buffer of this cache has room for."""
        return int(self._values[tensor.past].shape()[2])

    def bind(self, binding: Any, new_tokens: int) -> list[str]:
        """Bind past and present of every cache for a call with so many new tokens, growing buffers first.

        Args:
            binding: the session's IOBinding.
            new_tokens: S.

        Returns:
            The names of the bound outputs, in the order of binding.
        """
        total = self._length + new_tokens
        for tensor in self._tensors:
            if tensor.in_place and self.capacity(tensor) < tensor.capacity_for(total):
                self._grow(tensor, total)
            value = self._values[tensor.past]
            binding.bind_ortvalue_input(tensor.past, value)
            if tensor.in_place:
                binding.bind_ortvalue_output(tensor.present, value)
            else:
                binding.bind_output(tensor.present, "cpu")
        return [tensor.present for tensor in self._tensors]

    def advance(self, new_tokens: int, outputs: dict[str, ort.OrtValue]) -> None:
        """Take over the presents after a call.

        Args:
            new_tokens: S of the call.
            outputs: the presents by name.
        """
        self._length += new_tokens
        for tensor in self._tensors:
            if not tensor.in_place:
                self._values[tensor.past] = outputs[tensor.present]

    def copy(self) -> KVCache:
        """Another cache with the same tokens, to continue one text in several ways."""
        twin = KVCache(self._tensors, batch=self._batch, limit=self._limit)
        twin._length = self._length
        for tensor in self._tensors:
            rows = self._empty(tensor, self.capacity(tensor))
            rows[...] = self._values[tensor.past].numpy()
            twin._values[tensor.past] = ort.OrtValue.ortvalue_from_numpy(rows)
        return twin

    def rows(self, past: str) -> npt.NDArray[Any]:
        """A copy of the rows in use [B, Hkv, length, last] of the cache with this input name.

        Of a packed cache, whose rows lie in tiles and blocks, the first `length` rows of the buffer: bytes to compare.
        """
        copied: npt.NDArray[Any] = self._values[past].numpy()[:, :, : self._length].copy()
        return copied

    def _bytes_in_use(self, tensor: CacheTensor) -> int:
        if tensor.packed is None:
            return self._batch * self._length * tensor.row_bytes
        # A value cache says for its keys too what is coded.
        values = self._values[re.sub(r"key$", "value", tensor.past)].numpy()
        return packed_bytes_in_use(values, tensor.packed, self._length)

    def _grow(self, tensor: CacheTensor, total: int) -> None:
        grown = self._empty(tensor, tensor.capacity_for(grown_tokens(total, self._limit)))
        if self._length:
            before = self._values[tensor.past].numpy()
            kept = before.shape[2] if tensor.packed is not None else self._length
            grown[:, :, :kept] = before[:, :, :kept]
        self._values[tensor.past] = ort.OrtValue.ortvalue_from_numpy(grown)

    def _empty(self, tensor: CacheTensor, rows: int) -> npt.NDArray[Any]:
        return huge_pages.zeros((self._batch, tensor.kv_heads, rows, tensor.last), tensor.dtype)


def grown_tokens(total: int, limit: int | None) -> int:
    """Tokens to make room for where `total` are there: a little more, but never more than `limit`."""
    tokens = math.ceil(math.ceil(total * GROWTH) / GROWTH_TOKENS) * GROWTH_TOKENS
    return tokens if limit is None else max(total, min(tokens, limit))
