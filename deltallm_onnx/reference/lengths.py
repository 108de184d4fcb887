"""Where each row of a batch begins and ends: the lengths rules of docs/spec.md section 7."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class RowLengths:
    """Row numbers of the cache, for every row of the batch.

    Attributes:
        past: int64 [B], where the first new token goes.
        start: int64 [B], first real token; left padding lies before it.
        length: int64 [B], L_b: rows from here on hold nothing.
        total: rows of the cache this call speaks about.
    """

    past: Array
    start: Array
    length: Array
    total: int


def resolve_lengths(
    batch: int,
    new_tokens: int,
    past_capacity: int,
    *,
    seqlens_k: Array | None,
    total_sequence_length: Any,
    attention_mask: Array | None,
) -> RowLengths:
    """Read the lengths from whichever inputs are there.

    Args:
        batch: B.
        new_tokens: S.
        past_capacity: rows of past_key, 0 without one.
        seqlens_k: int [B], valid tokens − 1, or None.
        total_sequence_length: one integer; needed with seqlens_k.
        attention_mask: int [B, T] or None.

    Raises:
        DeltaLLMError: for lengths that contradict each other, for a zero inside a row of the mask, and for
            entries other than 0 and 1.
    """
    if attention_mask is not None and (attention_mask.ndim != 2 or attention_mask.shape[0] != batch):
        raise DeltaLLMError(
            f"attention_mask has shape {list(attention_mask.shape)}: give [{batch}, past + {new_tokens} new tokens]."
        )
    if attention_mask is not None and (others := np.argwhere((attention_mask != 0) & (attention_mask != 1))).size:
        b, column = others[0]
        raise DeltaLLMError(
            f"attention_mask has a {attention_mask[b, column]} at row {b}, column {column}: it may hold 0 and 1 only."
        )
    if seqlens_k is not None:
        lengths = _from_seqlens(batch, new_tokens, seqlens_k, total_sequence_length, attention_mask)
    elif attention_mask is not None:
        lengths = _from_mask(new_tokens, attention_mask)
    else:
        total = past_capacity + new_tokens
        lengths = RowLengths(_rows(batch, past_capacity), _rows(batch, 0), _rows(batch, total), total)
    if lengths.past.size and lengths.past.max() > past_capacity:
        raise DeltaLLMError(
            f"Batch row {lengths.past.argmax()} has {lengths.past.max()} past tokens but past_key holds "
            f"{past_capacity}: give a past_key with at least that many rows."
        )
    return lengths


def _from_seqlens(batch: int, new_tokens: int, seqlens_k: Array, total_length: Any, mask: Array | None) -> RowLengths:
    if total_length is None:
        raise DeltaLLMError("seqlens_k comes without total_sequence_length: give both.")
    total = int(np.asarray(total_length).reshape(()))
    seqlens = np.asarray(seqlens_k, np.int64)
    if seqlens.shape != (batch,):
        raise DeltaLLMError(f"seqlens_k has shape {list(seqlens.shape)}: give [{batch}].")
    for b, value in enumerate(seqlens):
        if not 0 <= value < total:
            raise DeltaLLMError(f"seqlens_k[{b}] is {value}: give 0 to total_sequence_length - 1 = {total - 1}.")
    length = seqlens + 1
    if total < new_tokens:
        raise DeltaLLMError(f"total_sequence_length is {total} for {new_tokens} new tokens: give at least that many.")
    past = _rows(batch, 0) if total == new_tokens else length - new_tokens
    if (past < 0).any():
        b = int(past.argmin())
        raise DeltaLLMError(
            f"seqlens_k[{b}] says {length[b]} tokens but the call brings {new_tokens} new ones: give at least as many."
        )
    start = _rows(batch, 0)
    if mask is not None:
        if mask.shape[1] != total:
            raise DeltaLLMError(f"attention_mask has {mask.shape[1]} columns for {total} tokens: give as many.")
        ones = mask != 0
        start = np.where(ones.any(axis=1), np.minimum(ones.argmax(axis=1), length), length)
    return RowLengths(past, start, length, total)


def _from_mask(new_tokens: int, mask: Array) -> RowLengths:
    ones = mask != 0
    batch, total = ones.shape
    if total < new_tokens:
        raise DeltaLLMError(f"attention_mask has {total} columns for {new_tokens} new tokens: give at least as many.")
    some = ones.any(axis=1)
    start = np.where(some, ones.argmax(axis=1), 0)
    length = np.where(some, total - ones[:, ::-1].argmax(axis=1), 0)
    columns = np.arange(total)
    holes = ~ones & (columns >= start[:, None]) & (columns < length[:, None])
    if holes.any():
        b, column = np.argwhere(holes)[0]
        raise DeltaLLMError(
            f"attention_mask has a zero between ones at row {b}, column {column}: it may pad both ends only."
        )
    return RowLengths(_rows(batch, total - new_tokens), start.astype(np.int64), length.astype(np.int64), total)


def _rows(batch: int, value: int) -> Array:
    return np.full(batch, value, np.int64)
