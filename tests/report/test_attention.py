from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.report_models import random_layer

from deltallm_onnx.reference import delta_attention, hybrid_window_attention
from deltallm_onnx.reference.packed_rows import round_row
from deltallm_onnx.report.attention import attention_section, probabilities
from deltallm_onnx.report.held_keys import held_keys
from deltallm_onnx.report.layer_inputs import LayerInputs

_AGE = np.arange(23)[:, None] - np.arange(23)
#: Hides all keys from query 5, and old ones from the others.
_HIDING = np.where((_AGE > 11) | (np.arange(23)[:, None] == 5), -np.inf, 0.0)

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "row": {"granularity": "row", "threshold": np.array([0.5, 0.9], np.float32)},
    "row by weight": {
        "granularity": "row",
        "row_rule": "absolute",
        "threshold": np.array([1.5, 0.9], np.float32),
        "row_weight": np.random.default_rng(8).uniform(0.1, 2, (2, 4)).astype(np.float32),
    },
    "by channel": {"threshold": np.random.default_rng(9).uniform(0, 2, (2, 4)).astype(np.float32)},
    "scale and softcap": {"scale": 0.9, "softcap": 1.5},
    "sliding window": {"local_window_size": 9},
    "keyframes": {"refresh": 5},
    "no window, no sinks": {"delta_window": 0, "sinks": 0},
    "half precision": {"cache_format": "float16"},
    "head sink": {"head_sink": np.linspace(-1, 4, 6).astype(np.float32)},
    "bias": {"attention_bias": np.random.default_rng(10).standard_normal((6, 23, 23)).astype(np.float32)},
    "hiding bias": {"attention_bias": np.broadcast_to(_HIDING, (6, 23, 23)).astype(np.float32)},
}


@pytest.mark.parametrize("case", CASES)
def test_probabilities_are_the_oracle_s(case: str) -> None:
    """The oracle returns weighted values; with one-hot values these are the weights, a few columns at a time."""
    layer = random_layer(5, **CASES[case])
    keys = held_keys(layer)
    T = layer.query.shape[1]
    for head in range(layer.query.shape[0]):
        exact, delta = probabilities(layer, keys, head)
        np.testing.assert_allclose(exact, _by_oracle(layer, layer.key, layer.key)[head], atol=1e-12)
        np.testing.assert_allclose(delta, _by_oracle(layer, keys.exact, keys.held)[head], atol=1e-12)
        if case not in ("head sink", "hiding bias"):
            np.testing.assert_allclose(delta.sum(axis=1), np.ones(T), rtol=1e-12)
        assert np.array_equal(np.triu(delta, 1), np.zeros((T, T)))
    assert np.abs(exact - delta).max() > 1e-3, "the case holds nothing"


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
@pytest.mark.parametrize("granularity", ["element", "row"])
def test_packed_caches_hold_what_the_oracle_counts(cache_format: str, granularity: str) -> None:
    thresholds = np.array([0.3, 0.8], np.float32)
    layer = random_layer(
        6, cache_format=cache_format, granularity=granularity, delta_window=5, sinks=4, threshold=thresholds
    )
    keys = held_keys(layer)
    _, counts = _packed_oracle(layer)
    np.testing.assert_array_equal(keys.repeats[:, 4 : 23 - 5].sum(axis=(1, 2)), counts[:, 1])
    assert counts[:, 1].all()


def test_packed_keys_give_the_oracle_s_output() -> None:
    """Without runs every value is rounded alone, and the output is the weights times rounded values."""
    layer = random_layer(11, cache_format="int8", delta_window=5, sinks=4)
    keys = held_keys(layer)
    output, _ = _packed_oracle(layer)
    for head in range(6):
        _, delta = probabilities(layer, keys, head)
        values = np.stack([round_row(row).decoded() for row in layer.value[head // 3]]).astype(np.float64)
        np.testing.assert_allclose(delta @ values, output[:, head], atol=2e-6)


def test_exactly_the_moved_attention_is_told() -> None:
    layers = [random_layer(1), random_layer(2), random_layer(3, delta_window=23)]
    keys = [held_keys(layer) for layer in layers]
    tokens = [f"t{i}" for i in range(23)]
    section = attention_section(layers, keys, tokens, maps=2)
    expected = [
        [np.abs(np.subtract(*probabilities(layer, held, head))).sum(axis=1).mean() / 2 for head in range(6)]
        for layer, held in zip(layers, keys, strict=True)
    ]
    np.testing.assert_allclose(section["moved"], expected, rtol=1e-12)
    assert section["moved"][2] == [0.0] * 6
    assert section["moved_mean"] == pytest.approx(np.mean(expected))
    first, last = section["maps"]
    assert first["head"] == int(np.argmax(expected[0]))
    assert first["kv_head"] == first["head"] // 3
    assert last["moved_mean"] == 0
    assert last["largest_changes"] == []
    change = first["largest_changes"][0]
    exact, delta = probabilities(layers[0], keys[0], first["head"])
    assert abs(change["exact"] - change["delta"]) == np.abs(exact - delta).max()
    assert (change["query_token"], change["key_token"]) == (f"t{change['query']}", f"t{change['key']}")
    assert change["exact"] == exact[change["query"], change["key"]]


def test_cells_are_means_over_queries_of_sums_over_keys() -> None:
    layer = random_layer(4)
    section = attention_section([layer], [held_keys(layer)], ["t"] * 23, maps=1)
    only = section["maps"][0]
    exact, _ = probabilities(layer, held_keys(layer), only["head"])
    assert only["tokens_per_cell"] == 1
    np.testing.assert_allclose(np.concatenate(only["exact"]), exact[np.tril_indices(23)], rtol=5e-3, atol=1e-300)


def test_long_samples_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltallm_onnx.report.attention._CELLS", 8)
    layer = random_layer(4)
    only = attention_section([layer], [held_keys(layer)], ["t"] * 23, maps=1)["maps"][0]
    _, delta = probabilities(layer, held_keys(layer), only["head"])
    assert only["tokens_per_cell"] == 3
    assert [len(row) for row in only["delta"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    # the last block has two tokens of three
    for i, row in enumerate(only["delta"]):
        assert sum(row) == pytest.approx(1, rel=5e-3)
        for j, cell in enumerate(row):
            block = delta[3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
            assert cell == pytest.approx(block.sum() / len(block), rel=5e-3)


def _by_oracle(layer: LayerInputs, key: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Weights [Hq, T, T]: the output for one-hot values of as many columns as the heads have channels."""
    _, T, D = layer.query.shape
    Hkv = layer.key.shape[0]
    identity = np.eye(-(-T // D) * D)[:T]
    bias = None if layer.attention_bias is None else layer.attention_bias[None]
    parts = [
        hybrid_window_attention(
            layer.query[None],
            key[None],
            held[None],
            np.broadcast_to(columns, (1, Hkv, T, D)),
            past_length=np.zeros(1, np.int64),
            start=np.zeros(1, np.int64),
            length=np.full(1, T),
            attention_bias=bias,
            head_sink=layer.head_sink,
            **{
                name: layer.settings[name]
                for name in ("scale", "softcap", "local_window_size", "delta_window", "sinks")
            },
        )[0]
        for columns in np.split(identity, identity.shape[1] // D, axis=1)
    ]
    return np.concatenate(parts, axis=2)[:, :, :T]


def _packed_oracle(layer: LayerInputs) -> tuple[np.ndarray, np.ndarray]:
    """Output [T, Hq, D] token by token, and statistics summed over the calls."""
    T = layer.query.shape[1]
    flat = [array.transpose(1, 0, 2).reshape(1, T, -1) for array in (layer.query, layer.key, layer.value)]
    settings = {name: value for name, value in layer.settings.items() if name != "prefill"}
    output, _, _, counts = delta_attention(
        *flat, attention_mask=np.ones((1, T), np.int64), threshold=layer.threshold, prefill="delta", **settings
    )
    return output[0].reshape(T, 6, -1), counts
