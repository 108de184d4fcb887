"""DeltaThreshold and HybridWindowAttention in ONNX Runtime, against the oracle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support.op_session import (
    DELTA_THRESHOLD_INPUTS,
    HYBRID_WINDOW_INPUTS,
    one_node_model,
    onnx_type,
    session,
)

from deltallm_onnx.reference import delta_threshold, hybrid_window_attention


@pytest.mark.parametrize(
    ("dtype", "granularity", "row_rule"),
    list(itertools.product(["float32", "float16"], ["element", "row"], ["relative", "absolute"])),
)
def test_delta_threshold(dtype: str, granularity: str, row_rule: str) -> None:
    rng = np.random.default_rng(1)
    B, Hkv, N, D = 2, 3, 23, 10
    per_channel = granularity == "element"
    feeds = {
        "key": rng.standard_normal((B, Hkv, N, D)).astype(dtype),
        "reference": rng.standard_normal((B, Hkv, D)).astype(dtype),
        "threshold": rng.uniform(0.6, 1.5, (Hkv, D) if per_channel else Hkv).astype(np.float32),
        "row_weight": rng.uniform(0.1, 0.4, (Hkv, D)).astype(np.float32),
        "transmit": rng.random((B, N)) < 0.2,
    }
    kind = onnx_type(dtype)
    attributes = {"granularity": granularity, "row_rule": row_rule}
    outputs = {"held_key": kind, "delta": kind}
    model = one_node_model("DeltaThreshold", DELTA_THRESHOLD_INPUTS, feeds, outputs, attributes)
    held, delta = session(model).run(None, feeds)
    expected_held, expected_delta = delta_threshold(**feeds, **attributes)
    np.testing.assert_array_equal(held, expected_held)
    np.testing.assert_array_equal(delta, expected_delta)
    assert 0.05 < (delta == 0).mean() < 0.95


@pytest.mark.parametrize("new_tokens", [1, 6, 150])
@pytest.mark.parametrize("prefill", ["exact", "delta"])
@pytest.mark.parametrize("types", [("float32", "float32"), ("float32", "float16"), ("float16", "float16")], ids=str)
def test_hybrid_window_attention(new_tokens: int, prefill: str, types: tuple[str, str]) -> None:
    query_type, key_type = types
    rng = np.random.default_rng(2)
    B, Hq, Hkv, C, D = 3, 4, 2, 170, 10
    past = np.array([20, 11, 5])
    feeds = {
        "query": rng.standard_normal((B, Hq, new_tokens, D)).astype(query_type),
        **{name: rng.standard_normal((B, Hkv, C, D)).astype(key_type) for name in ("key", "held_key", "value")},
        "past_length": past,
        "start": np.array([0, 3, 1]),
        # The last row has right padding.
        "length": past + np.array([new_tokens, new_tokens, max(1, new_tokens - 2)]),
        "attention_bias": rng.standard_normal((1, Hq, new_tokens, C)).astype(query_type),
        "head_sink": rng.standard_normal(Hq).astype(query_type),
    }
    attributes = {"delta_window": 4, "sinks": 2, "prefill": prefill, "softcap": 4.0, "scale": 0.4}
    outputs = {"output": onnx_type(query_type)}
    model = one_node_model("HybridWindowAttention", HYBRID_WINDOW_INPUTS, feeds, outputs, attributes)
    (found,) = session(model).run(None, feeds)
    expected = hybrid_window_attention(**feeds, **attributes)
    tolerance = 1e-5 if query_type == "float32" else 2.0**-10
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
