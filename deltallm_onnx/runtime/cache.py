"""Key/value cache buffers: bound as past and present at once where the operator updates them in place.

The capacity rule is docs/spec.md section 7, "Lengths": present has max(capacity of past, total length) rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from deltallm_onnx.errors import DeltaLLMError

#: A buffer that is full grows to this share above the rows it must hold, …
GROWTH = 1.125
#: … rounded up to a multiple of so many rows: each growth copies the cache once.
GROWTH_ROWS = 32

_FORMATS: dict[str, tuple[npt.DTypeLike, int]] = {
    # element type, bytes of a row per channel as a multiple of the element
    "float32": (np.float32, 1),
    "float16": (np.float16, 1),
}


def cache_spec(cache_format: str, head_size: int) -> tuple[np.dtype[Any], int]:
    """Element type and last dimension of a cache tensor [B, Hkv, capacity, last].

    Args:
        cache_format: as in `DeltaConfig.cache_format`.
        head_size: D, in channels.

    Raises:
        DeltaLLMError: for an unknown format.
    """
    if cache_format not in _FORMATS:
        raise DeltaLLMError(f"There is no cache format {cache_format!r}: choose one of {', '.join(_FORMATS)}.")
    dtype, per_channel = _FORMATS[cache_format]
    return np.dtype(dtype), per_channel * head_size


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
    """

    past: str
    present: str
    dtype: np.dtype[Any]
    kv_heads: int
    last: int
    in_place: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's row over all KV heads."""
        return self.kv_heads * self.last * self.dtype.itemsize


class KVCache:
    """The caches of one running sequence batch.

    Args:
        tensors: every cache of the model.
        batch: B.
        limit: rows that will never be exceeded, if known: growth stops there.
    """

    def __init__(self, tensors: Sequence[CacheTensor], *, batch: int = 1, limit: int | None = None) -> None:
        self._tensors = tuple(tensors)
        self._batch = batch
        self._limit = limit
        self._length = 0
        self._values = {tensor.past: ort.OrtValue.ortvalue_from_numpy(self._empty(tensor, 0)) for tensor in tensors}

    @property
    def length(self) -> int:
        """Rows in use, in tokens."""
        return self._length

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the rows in use, all layers, keys and values."""
        return self._batch * self._length * sum(tensor.row_bytes for tensor in self._tensors)

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
            if tensor.in_place and self.capacity(tensor) < total:
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

    def rows(self, past: str) -> npt.NDArray[Any]:
        """A copy of the rows in use [B, Hkv, length, last] of the cache with this input name."""
        copied: npt.NDArray[Any] = self._values[past].numpy()[:, :, : self._length].copy()
        return copied

    def _grow(self, tensor: CacheTensor, total: int) -> None:
        rows = grown_capacity(total, self._limit)
        grown = self._empty(tensor, rows)
        if self._length:
            grown[:, :, : self._length] = self._values[tensor.past].numpy()[:, :, : self._length]
        self._values[tensor.past] = ort.OrtValue.ortvalue_from_numpy(grown)

    def _empty(self, tensor: CacheTensor, rows: int) -> npt.NDArray[Any]:
        return np.zeros((self._batch, tensor.kv_heads, rows, tensor.last), tensor.dtype)


def grown_capacity(total: int, limit: int | None) -> int:
    """Rows to allocate for `total` rows in use: a little more, but never more than `limit` rows need."""
    rows = math.ceil(math.ceil(total * GROWTH) / GROWTH_ROWS) * GROWTH_ROWS
    return rows if limit is None else max(total, min(rows, limit))
