"""Softmax attention over the rows of a packed cache (docs/spec.md sections 3 and 5)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.reference.packed_cache import CacheRows

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What a score is made of, for the G query heads of one KV head.

    Attributes:
        scale: multiplies q·k.
        softcap: c·tanh(score / c); 0 = none.
        v_skip: ε of docs/spec.md section 5.
        head_sink: float [G] or None.
    """

    scale: float
    softcap: float
    v_skip: float
    head_sink: Array | None


def seen_rows(rows: CacheRows, token: int, local_window: int) -> CacheRows:
    """The rows that the query at a token sees: it and what came before it, within the model's own window.

    Args:
        rows: of the cache. With a local window every one stands for one token.
        token: the query's position, counted from the first real token.
        local_window: in tokens; −1 = none.
    """
    seen = rows.first_token <= token
    if local_window >= 0:
        seen &= rows.first_token > token - local_window
    return CacheRows(*(getattr(rows, field.name)[seen] for field in dataclasses.fields(rows)))


def joined(past: CacheRows, keys: Array, values: Array, first_token: int) -> CacheRows:
    """The rows of the past and new ones of one token each, as they came in: float32 [S, D]."""
    S = len(keys)
    return CacheRows(
        keys=np.concatenate([past.keys, keys]),
        values=np.concatenate([past.values, values]),
        tokens=np.concatenate([past.tokens, np.ones(S, np.int64)]),
        first_token=np.concatenate([past.first_token, first_token + np.arange(S)]),
        coded=np.concatenate([past.coded, np.zeros(S, bool)]),
        spared=np.concatenate([past.spared, np.zeros(S, np.int64)]),
    )


def attend_rows(query: Array, rows: CacheRows, scoring: Scoring, bias: Array | None) -> tuple[Array, Array]:
    """Attention of one query over rows of n tokens each: n equal keys with the row's value.

    Args:
        query: float32 [G, D].
        rows: the R rows it sees.
        scoring: how scores are made.
        bias: float [G, R] or None, added after the softcap.

    Returns:
        float64 [G, D], zero where nothing is seen; and bool [G, R], rows whose value v_skip left out.
    """
    output = np.zeros(query.shape)
    left_out = np.zeros((len(query), len(rows.tokens)), bool)
    # Without BLAS, whose threads cost more than these small products.
    scores = scoring.scale * np.einsum("gd,rd->gr", query.astype(np.float64), rows.keys.astype(np.float64))
    if scoring.softcap > 0:
        scores = scoring.softcap * np.tanh(scores / scoring.softcap)
    if bias is not None:
        scores = scores + bias.astype(np.float64)
    for g, score in enumerate(scores):
        top = score.max(initial=-np.inf)
        if top == -np.inf:
            continue
        sink = -np.inf if scoring.head_sink is None else float(scoring.head_sink[g])
        shift = max(top, sink)
        p = np.exp(score - shift)
        denominator = (rows.tokens * p).sum() + np.exp(sink - shift)
        left_out[g] = p < scoring.v_skip * p.max()
        weights = np.where(left_out[g], 0.0, rows.tokens * p / denominator)
        output[g] = np.einsum("r,rd->d", weights, rows.values.astype(np.float64))
    return output, left_out
