"""Softmax attention over exact and held keys: docs/spec.md sections 3 and 5."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.reference.visibility import held_keys, visible_keys

Array = npt.NDArray[Any]


def hybrid_window_attention(
    query: Array,
    key: Array,
    held_key: Array,
    value: Array,
    *,
    past_length: Array,
    start: Array,
    length: Array,
    attention_bias: Array | None = None,
    head_sink: Array | None = None,
    scale: float = 0.0,
    softcap: float = 0.0,
    local_window_size: int = -1,
    delta_window: int = 0,
    sinks: int = 0,
    prefill: str = "delta",
    v_skip: float = 0.0,
    window_kind: str = "sliding",
) -> Array:
    """The operator ai.deltallm::HybridWindowAttention (docs/spec.md section 7).

    Query s of batch row b stands at row past_length[b] + s of the cache.

    Args:
        query: float [B, Hq, S, D].
        key: k, float [B, Hkv, C, D]; rows from length[b] on, and before start[b], are not read.
        held_key: k̂, float [B, Hkv, C, D].
        value: float [B, Hkv, C, D].
        past_length: int64 [B].
        start: int64 [B], first real token.
        length: int64 [B], L_b.
        attention_bias: float [B or 1, Hq or 1, S, at least max L_b], added after softcap; −inf hides a key.
        head_sink: float [Hq], an extra logit in the denominator.
        scale: multiplies q·k; 0 = 1/√D.
        softcap: c·tanh(score / c); 0 = none.
        local_window_size: the model's own sliding window; −1 = none.
        delta_window: newest tokens seen exactly.
        sinks: first tokens seen exactly.
        prefill: "exact" or "delta".
        v_skip: ε; probabilities below ε·max are left out of the sum over values, not out of the denominator.
        window_kind: "sliding", or "block" for the lineage's block-diagonal window.

    Returns:
        float64 [B, Hq, S, D]; zero for a query that sees no key.
    """
    output, _ = attend(
        query,
        key,
        held_key,
        value,
        past_length=past_length,
        start=start,
        length=length,
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
    return output


def attend(
    query: Array,
    key: Array,
    held_key: Array,
    value: Array,
    *,
    past_length: Array,
    start: Array,
    length: Array,
    attention_bias: Array | None,
    head_sink: Array | None,
    scale: float,
    softcap: float,
    local_window_size: int,
    delta_window: int,
    sinks: int,
    prefill: str,
    v_skip: float,
    window_kind: str,
) -> tuple[Array, Array]:
    """As `hybrid_window_attention`; also tells which values were left out.

    Returns:
        output float64 [B, Hq, S, D], and bool [B, Hq, S, C]: visible keys whose value v_skip left out.
    """
    B, Hq, S, D = query.shape
    Hkv, C = key.shape[1:3]
    multiplier = scale if scale != 0 else 1 / np.sqrt(D)
    output = np.zeros((B, Hq, S, D))
    left_out = np.zeros((B, Hq, S, C), bool)
    bias = None if attention_bias is None else np.broadcast_to(attention_bias, (B, Hq, *attention_bias.shape[2:]))
    for b in range(B):
        n = int(length[b])
        rows = int(past_length[b]) + np.arange(S)
        visible = visible_keys(rows, int(start[b]), n, local_window_size)
        held = held_keys(
            rows,
            int(start[b]),
            n,
            int(past_length[b]),
            window=delta_window,
            sinks=sinks,
            prefill=prefill,
            kind=window_kind,
        )
        for h in range(Hq):
            kv = h * Hkv // Hq
            for s in range(S):
                j = np.flatnonzero(visible[s])
                keys = np.where(held[s, j, None], held_key[b, kv, j], key[b, kv, j]).astype(np.float64)
                scores = multiplier * (keys @ query[b, h, s].astype(np.float64))
                if softcap > 0:
                    scores = softcap * np.tanh(scores / softcap)
                if bias is not None:
                    scores = scores + bias[b, h, s, j].astype(np.float64)
                sink = None if head_sink is None else float(head_sink[h])
                share, skipped = _softmax(scores, sink, v_skip)
                output[b, h, s] = share @ value[b, kv, j].astype(np.float64)
                left_out[b, h, s, j] = skipped
    return output, left_out


def _softmax(scores: Array, sink: float | None, v_skip: float) -> tuple[Array, Array]:
    """Weights of the values seen, float64 [n], and which of them v_skip sets to zero, bool [n]."""
    top = scores.max(initial=-np.inf)
    if top == -np.inf:
        return np.zeros_like(scores), np.zeros(scores.shape, bool)
    # The sink may be the larger logit; shifting by the larger of the two keeps every exponent at or below zero.
    shift = top if sink is None else max(top, sink)
    p = np.exp(scores - shift)
    denominator = p.sum() + (0.0 if sink is None else np.exp(sink - shift))
    skipped = p < v_skip * p.max()
    return np.where(skipped, 0.0, p / denominator), skipped
