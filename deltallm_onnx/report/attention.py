"""Attention maps: what each query looks at with exact keys, and with the keys it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.reference.visibility import held_keys as reads_held
from deltallm_onnx.reference.visibility import visible_keys
from deltallm_onnx.report.held_keys import HeldKeys
from deltallm_onnx.report.layer_inputs import LayerInputs

Array = npt.NDArray[Any]

#: Cells of a drawn map along each axis, at most.
_CELLS = 128
#: Pairs of tokens listed per map.
_LISTED = 5


def probabilities(layer: LayerInputs, keys: HeldKeys, head: int) -> tuple[Array, Array]:
    """Softmax weights of one query head (docs/spec.md section 3), values left out by v_skip included.

    Args:
        layer: what the layer was given.
        keys: its keys as stored.
        head: query head.

    Returns:
        With the layer's own keys, and with those that decoding reads; float64 [T, T], row i of query i. Rows sum to 1,
        or to less where a head sink takes its share.
    """
    settings, T = layer.settings, layer.query.shape[1]
    kv = head * layer.key.shape[0] // layer.query.shape[0]
    rows = np.arange(T)
    visible = visible_keys(rows, 0, T, settings["local_window_size"])
    held = reads_held(
        rows, 0, T, 0, window=settings["delta_window"], sinks=settings["sinks"], prefill="delta", kind="sliding"
    )
    query = layer.query[head].astype(np.float64)
    dense = query @ layer.key[kv].T.astype(np.float64)
    near, far = (query @ part[kv].T.astype(np.float64) for part in (keys.exact, keys.held))
    bias = None if layer.attention_bias is None else layer.attention_bias[head].astype(np.float64)
    sink = None if layer.head_sink is None else float(layer.head_sink[head])
    exact, delta = (
        _softmax(scores * layer.scale, visible, settings["softcap"], bias, sink)
        for scores in (dense, np.where(held, far, near))
    )
    return exact, delta


def attention_section(
    layers: Sequence[LayerInputs], keys: Sequence[HeldKeys], tokens: Sequence[str], *, maps: int
) -> dict[str, Any]:
    """How much attention moves in every head, and maps of some heads.

    Layers to show are spread evenly over the model, and of each the head is shown whose attention moves most.

    Args:
        layers: at least one, all reading the same T tokens.
        keys: of each layer.
        tokens: text of each token, T of them.
        maps: how many to show, at most one per layer.

    Returns:
        JSON-ready. Attention moved is the total variation ½ Σ_j |p_j − p̂_j| of a query, 0 to 1.
    """
    moved = [
        [_moved(*probabilities(layer, held, head)).mean() for head in range(layer.query.shape[0])]
        for layer, held in zip(layers, keys, strict=True)
    ]
    shown = sorted({round(place) for place in np.linspace(0, len(layers) - 1, min(maps, len(layers)))})
    return {
        "layers": [layer.layer for layer in layers],
        "moved_mean": float(np.mean([value for row in moved for value in row])),
        "moved": [[float(value) for value in row] for row in moved],
        "maps": [_map(layers[i], keys[i], int(np.argmax(moved[i])), tokens) for i in shown],
    }


def _map(layer: LayerInputs, keys: HeldKeys, head: int, tokens: Sequence[str]) -> dict[str, Any]:
    exact, delta = probabilities(layer, keys, head)
    by_query = _moved(exact, delta)
    change = np.abs(delta - exact)
    largest = np.argsort(change, axis=None, kind="stable")[::-1][:_LISTED]
    block = -(-len(tokens) // _CELLS)
    return {
        "layer": layer.layer,
        "head": head,
        "kv_head": head * layer.key.shape[0] // layer.query.shape[0],
        "moved_mean": float(by_query.mean()),
        "moved_by_query": [_short(value) for value in by_query],
        "tokens_per_cell": block,
        "exact": _cells(exact, block),
        "delta": _cells(delta, block),
        "largest_changes": [
            {
                "query": int(i),
                "query_token": tokens[i],
                "key": int(j),
                "key_token": tokens[j],
                "exact": float(exact[i, j]),
                "delta": float(delta[i, j]),
            }
            for i, j in zip(*np.unravel_index(largest, change.shape), strict=True)
            if change[i, j] > 0
        ],
    }


def _cells(weights: Array, block: int) -> list[list[float]]:
    """Lower triangle in blocks of tokens: the mean query's share of attention on all keys of a block."""
    T = len(weights)
    starts = np.arange(0, T, block)
    by_key = np.add.reduceat(weights, starts, axis=1)
    summed = np.add.reduceat(by_key, starts, axis=0)
    means = summed / np.minimum(block, T - starts)[:, None]
    return [[_short(value) for value in row[: i + 1]] for i, row in enumerate(means)]


def _moved(exact: Array, delta: Array) -> Array:
    """Of every query, float64 [T]."""
    return np.asarray(np.abs(delta - exact).sum(axis=1) / 2)


def _softmax(scores: Array, visible: Array, softcap: float, bias: Array | None, sink: float | None) -> Array:
    if softcap > 0:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    scores = np.where(visible, scores, -np.inf)
    top = scores.max(axis=1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - top)
    return np.asarray(weights / np.where(total > 0, total, 1.0))


def _short(value: float) -> float:
    """Three significant digits: a picture shows no more."""
    return float(f"{value:.3g}")
