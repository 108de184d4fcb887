"""ai.deltallm::DeltaAttention as one function: docs/spec.md section 7."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from deltallm_onnx.config import CacheFormat, Prefill, PrefillCompute
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.packed_sizes import PACKED_FORMATS
from deltallm_onnx.reference.attention import attend
from deltallm_onnx.reference.hold import check_row_weight, check_threshold, hold
from deltallm_onnx.reference.lengths import RowLengths, resolve_lengths
from deltallm_onnx.reference.packed import CodingRules, PackedCall, PackedLayout
from deltallm_onnx.reference.rotary import rotary
from deltallm_onnx.reference.statistics import STATISTICS_COLUMNS, count_batch_row
from deltallm_onnx.reference.visibility import WINDOW_KINDS, coded_end, held_keys, visible_keys

Array = npt.NDArray[Any]


def delta_attention(
    query: Array,
    key: Array | None,
    value: Array | None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    *,
    seqlens_k: Array | None = None,
    total_sequence_length: Any = None,
    cos_cache: Array | None = None,
    sin_cache: Array | None = None,
    position_ids: Array | None = None,
    attention_bias: Array | None = None,
    head_sink: Array | None = None,
    threshold: Array | float,
    row_weight: Array | None = None,
    attention_mask: Array | None = None,
    num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    softcap: float = 0.0,
    local_window_size: int = -1,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    delta_window: int = 0,
    sinks: int = 0,
    granularity: str = "element",
    row_rule: str = "relative",
    refresh: int = 0,
    v_skip: float = 0.0,
    prefill: str = "delta",
    cache_format: str = "float32",
    prefill_compute: str = "float32",
    window_kind: str = "sliding",
) -> tuple[Array, Array, Array, Array]:
    """Append the new tokens, code what leaves the window, attend, count.

    Arguments have the names, shapes and types of the operator's inputs and attributes. None stands for an absent
    input; a number as threshold serves all heads. `window_kind` "block" is not the operator's: it takes the lineage's
    block-diagonal window with blocks of `delta_window` tokens, for reproduction. `prefill_compute` allows the operator
    lower precision and changes nothing here.

    Returns:
        output [B, S, Hq·D] in the query's type; present_key and present_value [B, Hkv, max(past capacity, total), D]
        in the cache's type, rows from L_b on unspecified, or the bytes of docs/cache-format.md; statistics
        int64 [Hkv, 8] (see STATISTICS_COLUMNS).

    Raises:
        DeltaLLMError: for whatever the operator refuses, naming input or attribute and the value at fault.
    """
    _check_attributes(
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        softcap=softcap,
        local_window_size=local_window_size,
        delta_window=delta_window,
        sinks=sinks,
        refresh=refresh,
        v_skip=v_skip,
        prefill=prefill,
        cache_format=cache_format,
        prefill_compute=prefill_compute,
        window_kind=window_kind,
    )
    q, k, v = _split_heads(query, key, value, num_heads, kv_num_heads)
    B, _, S, D = q.shape
    theta = check_threshold(threshold, kv_num_heads, D, granularity)
    weight = check_row_weight(row_weight, kv_num_heads, D)
    layout = None
    if cache_format in PACKED_FORMATS:
        layout = PackedLayout(cache_format, D, sinks, delta_window)
        _check_packed(cache_format, window_kind, lengths_given=seqlens_k is not None or attention_mask is not None)
    last, cache_type = (D, cache_format) if layout is None else (layout.bytes_per_token, "uint8")
    past_capacity = _check_past(past_key, past_value, (B, kv_num_heads, last), cache_type)
    rows = resolve_lengths(
        B,
        S,
        past_capacity,
        seqlens_k=seqlens_k,
        total_sequence_length=total_sequence_length,
        attention_mask=attention_mask,
    )
    _check_bias_and_sink(attention_bias, head_sink, (B, num_heads, S, rows.total))
    if do_rotary:
        if cos_cache is None or sin_cache is None:
            raise DeltaLLMError("do_rotary is 1 without cos_cache and sin_cache: give both.")
        positions = _positions(rows, S, position_ids)
        q = rotary(q, positions, cos_cache, sin_cache, interleaved=bool(rotary_interleaved))
        k = rotary(k, positions, cos_cache, sin_cache, interleaved=bool(rotary_interleaved))

    if layout is not None:
        merges = granularity == "row" and local_window_size == -1 and attention_bias is None
        if attention_bias is not None:
            attention_bias = np.broadcast_to(attention_bias, (B, num_heads, *attention_bias.shape[2:]))
        call = PackedCall(
            query=q,
            key=k,
            value=v,
            past_key=past_key,
            past_value=past_value,
            rows=rows,
            layout=layout,
            rules=[
                CodingRules(t, w, granularity, row_rule, refresh, merges) for t, w in zip(theta, weight, strict=True)
            ],
            scale=scale if scale != 0 else 1 / np.sqrt(D),
            softcap=softcap,
            local_window_size=local_window_size,
            v_skip=v_skip,
            prefill=prefill,
            attention_bias=attention_bias,
            head_sink=head_sink,
        )
        output, present_key, present_value, statistics = call.run()
        return _tokens_first(output, query.dtype), present_key, present_value, statistics

    raw_key = _append(past_key, k, rows, past_capacity, cache_format)
    present_value = _append(past_value, v, rows, past_capacity, cache_format)
    present_key = raw_key.copy()
    statistics = np.zeros((kv_num_heads, len(STATISTICS_COLUMNS)), np.int64)
    coded = [_coded_rows(rows, b, delta_window, sinks, window_kind) for b in range(B)]
    for b, (first, last) in enumerate(coded):
        if first == last:
            continue
        position = np.arange(first, last) - rows.start[b]
        present_key[b : b + 1, :, first:last] = hold(
            raw_key[b : b + 1, :, first:last],
            threshold,
            granularity=granularity,
            row_rule=row_rule,
            row_weight=row_weight,
            # Position 0 has nothing before it, so its reference is absent whatever lies in the padded rows.
            reference=present_key[b : b + 1, :, first - 1] if position[0] > 0 else None,
            transmit=(position % refresh == 0)[None] if refresh > 0 else None,
        )
    output, left_out = attend(
        q,
        raw_key,
        present_key,
        present_value,
        past_length=rows.past,
        start=rows.start,
        length=rows.length,
        attention_bias=attention_bias,
        head_sink=head_sink,
        scale=scale,
        softcap=softcap,
        local_window_size=local_window_size,
        delta_window=delta_window,
        sinks=sinks,
        prefill=prefill,
        v_skip=v_skip,
        window_kind=window_kind,
    )
    for b in range(B):
        start, length, past = int(rows.start[b]), int(rows.length[b]), int(rows.past[b])
        tokens = past + np.arange(S)
        statistics += count_batch_row(
            present_key[b],
            visible_keys(tokens, start, length, local_window_size),
            held_keys(tokens, start, length, past, window=delta_window, sinks=sinks, prefill=prefill, kind=window_kind),
            left_out[b],
            start=start,
            coded=coded[b],
            granularity=granularity,
        )
    return _tokens_first(output, query.dtype), present_key, present_value, statistics


def _tokens_first(output: Array, dtype: npt.DTypeLike) -> Array:
    """[B, Hq, S, D] → [B, S, Hq·D], rounded once."""
    B, Hq, S, D = output.shape
    return output.transpose(0, 2, 1, 3).reshape(B, S, Hq * D).astype(dtype)


def _check_packed(cache_format: str, window_kind: str, *, lengths_given: bool) -> None:
    if window_kind != "sliding":
        raise DeltaLLMError(
            f"window_kind is {window_kind!r} with cache_format {cache_format}: only 'sliding' is defined."
        )
    if cache_format == "int4" and not lengths_given:
        raise DeltaLLMError(
            "Neither seqlens_k nor attention_mask is given: cache_format int4 needs one: its capacity is not a length."
        )


def _check_attributes(*, num_heads: int, kv_num_heads: int, **attributes: Any) -> None:
    if num_heads < 1 or kv_num_heads < 1 or num_heads % kv_num_heads:
        raise DeltaLLMError(
            f"num_heads is {num_heads} and kv_num_heads {kv_num_heads}: the first must be a multiple of the second."
        )
    for name in ("delta_window", "sinks", "refresh"):
        if attributes[name] < 0:
            raise DeltaLLMError(f"{name} is {attributes[name]}: give a whole number of tokens, 0 or more.")
    window = attributes["local_window_size"]
    if window < 1 and window != -1:
        raise DeltaLLMError(f"local_window_size is {window}: give -1 (none) or at least 1.")
    if not attributes["softcap"] >= 0:
        raise DeltaLLMError(f"softcap is {attributes['softcap']}: give 0 (none) or a positive number.")
    if not 0 <= attributes["v_skip"] < 1:
        raise DeltaLLMError(f"v_skip is {attributes['v_skip']}: give a number from 0 up to, but below, 1.")
    choices = {
        "prefill": get_args(Prefill),
        "cache_format": get_args(CacheFormat),
        "prefill_compute": get_args(PrefillCompute),
        "window_kind": WINDOW_KINDS,
    }
    for name, allowed in choices.items():
        if attributes[name] not in allowed:
            raise DeltaLLMError(f"{name} is {attributes[name]!r}: choose one of {', '.join(allowed)}.")


def _split_heads(query: Array, key: Array | None, value: Array | None, Hq: int, Hkv: int) -> tuple[Array, Array, Array]:
    """float32 [B, H, S, D] of query, key and value, given apart or packed along the channels of `query`."""
    if (key is None) != (value is None):
        raise DeltaLLMError("Only one of key and value is given: give both, or neither and a packed query.")
    heads = Hq + 2 * Hkv if key is None else Hq
    if query.ndim != 3 or query.shape[2] % heads:
        raise DeltaLLMError(
            f"query has shape {list(query.shape)}: give [batch, new tokens, {heads} heads x head size]."
        )
    B, S, width = query.shape
    D = width // heads
    if key is None or value is None:
        edges = [Hq * D, (Hq + Hkv) * D]
        query, key, value = np.split(query, edges, axis=2)
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape != (B, S, Hkv * D):
            raise DeltaLLMError(f"{name} has shape {list(tensor.shape)}: give {[B, S, Hkv * D]} beside this query.")

    def heads_first(x: Array, H: int) -> Array:
        return x.reshape(B, S, H, D).transpose(0, 2, 1, 3).astype(np.float32)

    return heads_first(query, Hq), heads_first(key, Hkv), heads_first(value, Hkv)


def _check_past(past_key: Array | None, past_value: Array | None, dims: tuple[int, int, int], cache_type: str) -> int:
    """Capacity of the past in rows; 0 without one."""
    if past_key is None and past_value is None:
        return 0
    if past_key is None or past_value is None:
        raise DeltaLLMError("Only one of past_key and past_value is given: give both or neither.")
    B, Hkv, D = dims
    for name, tensor in (("past_key", past_key), ("past_value", past_value)):
        if tensor.ndim != 4 or (*tensor.shape[:2], tensor.shape[3]) != dims:
            raise DeltaLLMError(f"{name} has shape {list(tensor.shape)}: give [{B}, {Hkv}, rows, {D}].")
        if tensor.dtype != cache_type:
            raise DeltaLLMError(f"{name} is {tensor.dtype}: this cache_format is stored as {cache_type}.")
    if past_key.shape != past_value.shape:
        raise DeltaLLMError(
            f"past_key has {past_key.shape[2]} rows and past_value {past_value.shape[2]}: give as many of both."
        )
    return int(past_key.shape[2])


def _check_bias_and_sink(bias: Array | None, sink: Array | None, dims: tuple[int, int, int, int]) -> None:
    B, Hq, S, total = dims
    if bias is not None and not (
        bias.ndim == 4 and bias.shape[0] in (1, B) and bias.shape[1] in (1, Hq) and bias.shape[2:] == (S, total)
    ):
        raise DeltaLLMError(
            f"attention_bias has shape {list(bias.shape)}: give [{B} or 1, {Hq} or 1, {S}, {total}] "
            "(batch, heads, new tokens, total tokens)."
        )
    if sink is not None and sink.shape != (Hq,):
        raise DeltaLLMError(f"head_sink has shape {list(sink.shape)}: give [{Hq}].")


def _positions(rows: RowLengths, S: int, position_ids: Array | None) -> Array:
    """Row of the cos and sin caches for every new token, int64 [B, S]; 0 for padding, whose rotation nobody reads."""
    row = rows.past[:, None] + np.arange(S)
    if position_ids is not None and position_ids.shape != row.shape:
        raise DeltaLLMError(f"position_ids has shape {list(position_ids.shape)}: give {list(row.shape)}.")
    positions = row - rows.start[:, None] if position_ids is None else np.asarray(position_ids, np.int64)
    real = (row >= rows.start[:, None]) & (row < rows.length[:, None])
    return np.where(real, positions, 0)


def _append(past: Array | None, new: Array, rows: RowLengths, past_capacity: int, cache_format: str) -> Array:
    """The cache with the new rows in place and nothing coded yet, [B, Hkv, max(past capacity, total), D]."""
    B, Hkv, S, D = new.shape
    cache = np.zeros((B, Hkv, max(past_capacity, rows.total), D), cache_format)
    if past is not None:
        cache[:, :, :past_capacity] = past
    for b in range(B):
        first = int(rows.past[b])
        count = min(S, max(0, int(rows.length[b]) - first))
        cache[b, :, first : first + count] = new[b, :, :count].astype(cache_format)
    return cache


def _coded_rows(rows: RowLengths, b: int, window: int, sinks: int, kind: str) -> tuple[int, int]:
    """First and one past the last row that leaves batch row b's window in this call."""
    start, past, length = int(rows.start[b]), int(rows.past[b]), int(rows.length[b])
    before = start + int(coded_end(np.asarray(past - start), window, kind))
    after = start + int(coded_end(np.asarray(length - start), window, kind))
    first = max(start + sinks, before)
    return first, max(first, after)
