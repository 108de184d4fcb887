"""The hold transform of docs/spec.md section 2: which channels, or which rows, of a key repeat the one before."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from deltallm_onnx.config import Granularity, RowRule
from deltallm_onnx.errors import DeltaLLMError

Array = npt.NDArray[Any]


def hold(
    keys: Array,
    threshold: Array | float,
    *,
    granularity: str = "element",
    row_rule: str = "relative",
    row_weight: Array | None = None,
    reference: Array | None = None,
    transmit: Array | None = None,
    sinks: int = 0,
    refresh: int = 0,
) -> Array:
    """k̂ of a key sequence: every row against the last transmitted one.

    Args:
        keys: k after RoPE, float [B, Hkv, N, D].
        threshold: θ, float [Hkv] or [Hkv, D]; one number serves all heads. Row granularity takes [Hkv] only.
        granularity: "element" holds single channels, "row" whole rows.
        row_rule: "relative" holds a row's change against ‖w∘k_t‖, "absolute" against 1. Row granularity only.
        row_weight: w, float [Hkv, D]; None is all ones. Row granularity only.
        reference: k̂ before the first row, float [B, Hkv, D]; None: there is none and the first row is transmitted.
        transmit: bool [B, N], rows to transmit in any case.
        sinks: rows 0 to sinks − 1 are transmitted (counted in this sequence).
        refresh: every so many rows one is transmitted (counted in this sequence); 0 = never.

    Returns:
        k̂, [B, Hkv, N, D] in the keys' type.

    Raises:
        DeltaLLMError: for shapes that do not fit together, an unknown granularity or rule, or a [Hkv, D] threshold
            with row granularity.
    """
    if keys.ndim != 4:
        raise DeltaLLMError(f"keys have shape {list(keys.shape)}: give [batch, kv heads, rows, head size].")
    B, Hkv, N, D = keys.shape
    theta = check_threshold(threshold, Hkv, D, granularity)
    weight = check_row_weight(row_weight, Hkv, D)
    if row_rule not in get_args(RowRule):
        raise DeltaLLMError(f"row_rule is {row_rule!r}: choose one of {', '.join(get_args(RowRule))}.")
    if reference is not None and reference.shape != (B, Hkv, D):
        raise DeltaLLMError(f"reference has shape {list(reference.shape)}: give {[B, Hkv, D]}.")
    forced = np.zeros((B, N), bool) if transmit is None else np.array(transmit, bool)
    if forced.shape != (B, N):
        raise DeltaLLMError(f"transmit has shape {list(forced.shape)}: give {[B, N]}.")
    rows = np.arange(N)
    forced |= rows < sinks
    if refresh > 0:
        forced |= rows % refresh == 0
    if reference is None:
        forced |= rows == 0

    held = np.empty_like(keys)
    previous = np.zeros((B, Hkv, D), keys.dtype) if reference is None else reference.astype(keys.dtype)
    for t in range(N):
        row = keys[:, :, t]
        if granularity == "element":
            keep = change_is_small(row, previous, theta)
        else:
            keep = row_change_is_small(row, previous, theta, row_rule, weight)
        previous = np.where(keep & ~forced[:, t, None, None], previous, row)
        held[:, :, t] = previous
    return held


def delta_threshold(
    key: Array,
    reference: Array,
    threshold: Array,
    row_weight: Array | None = None,
    transmit: Array | None = None,
    *,
    granularity: str,
    row_rule: str,
) -> tuple[Array, Array]:
    """The operator ai.deltallm::DeltaThreshold (docs/spec.md section 7).

    Args:
        key: float [B, Hkv, N, D].
        reference: k̂ before the first row, float [B, Hkv, D].
        threshold: float32 [Hkv] or [Hkv, D].
        row_weight: float32 [Hkv, D] or None.
        transmit: bool [B, N] or None.
        granularity: "element" or "row".
        row_rule: "relative" or "absolute".

    Returns:
        held_key k̂ and delta Δ, both [B, Hkv, N, D] in the key's type; Δ is a float32 difference, rounded once.

    Raises:
        DeltaLLMError: as `hold`.
    """
    held = hold(
        key,
        threshold,
        granularity=granularity,
        row_rule=row_rule,
        row_weight=row_weight,
        reference=reference,
        transmit=transmit,
    )
    before = np.concatenate([reference[:, :, None].astype(key.dtype), held[:, :, :-1]], axis=2)
    return held, (held.astype(np.float32) - before.astype(np.float32)).astype(key.dtype)


def check_threshold(threshold: Array | float, kv_heads: int, head_size: int, granularity: str) -> Array:
    """θ as float32 [Hkv, 1] or [Hkv, D]; a number serves all heads.

    Raises:
        DeltaLLMError: for another shape, a negative or non-finite θ, an unknown granularity, or [Hkv, D] with "row".
    """
    if granularity not in get_args(Granularity):
        raise DeltaLLMError(f"granularity is {granularity!r}: choose one of {', '.join(get_args(Granularity))}.")
    theta = np.asarray(threshold, np.float32)
    if theta.ndim == 0:
        theta = np.full(kv_heads, theta, np.float32)
    if theta.shape == (kv_heads,):
        theta = theta[:, None]
    elif theta.shape != (kv_heads, head_size):
        raise DeltaLLMError(
            f"threshold has shape {list(theta.shape)}: give [{kv_heads}] or [{kv_heads}, {head_size}] "
            "(kv heads, head size)."
        )
    elif granularity == "row":
        raise DeltaLLMError(f"threshold has shape {list(theta.shape)}: granularity 'row' takes one number per kv head.")
    if not (np.isfinite(theta).all() and (theta >= 0).all()):
        raise DeltaLLMError("threshold holds a negative or non-finite number: give numbers of at least 0.")
    return theta


def check_row_weight(row_weight: Array | None, kv_heads: int, head_size: int) -> Array:
    """W as float64 [Hkv, D], ones where absent.

    Raises:
        DeltaLLMError: for another shape.
    """
    if row_weight is None:
        return np.ones((kv_heads, head_size))
    if row_weight.shape != (kv_heads, head_size):
        raise DeltaLLMError(f"row_weight has shape {list(row_weight.shape)}: give {[kv_heads, head_size]}.")
    return np.asarray(row_weight, np.float32).astype(np.float64)


def change_is_small(row: Array, previous: Array, theta: Array) -> Array:
    """|δ| ≤ θ per channel, bool [B, Hkv, D]. A NaN compares false, so it is transmitted."""
    with np.errstate(invalid="ignore"):
        delta = row.astype(np.float32) - previous.astype(np.float32)
        return np.asarray(np.abs(delta) <= theta)


def row_change_is_small(row: Array, previous: Array, theta: Array, rule: str, weight: Array) -> Array:
    """‖w∘(k − k̂)‖₂ ≤ θ·ρ per row, bool [B, Hkv, 1], in float64. A NaN compares false, so it is transmitted."""
    with np.errstate(invalid="ignore"):
        k, reference = row.astype(np.float64), previous.astype(np.float64)
        change = np.sqrt(np.sum((weight * (k - reference)) ** 2, axis=-1, keepdims=True))
        rho = np.sqrt(np.sum((weight * k) ** 2, axis=-1, keepdims=True)) if rule == "relative" else 1.0
        return np.asarray(change <= theta.astype(np.float64) * rho)
