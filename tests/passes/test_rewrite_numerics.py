"""A model rewritten with θ = 0 computes what the dense model computes, through the fallback functions alone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support.attention_models import attention_model, exporter_mask, random_feeds, run_model, runner

from deltallm_onnx import DeltaConfig, profile
from deltallm_onnx.passes import rewrite_model

LAYOUTS = ("heads_first", "flat", "projected", "rotary")
MASKS = {
    "is_causal": (None, {"is_causal": 1}),
    "padding": (exporter_mask(), {}),
    "window": (exporter_mask(3, padding=False), {}),
    "padding and window": (exporter_mask(4), {"is_causal": 1}),
}
#: (new, past): first prompts, single tokens, and chunks behind a past.
SIZES = [(1, 0), (5, 0), (1, 6), (3, 11)]
#: One softmax over at most 14 float32 scores of magnitude below 30, computed in another order.
TOLERANCE = 1e-5


def rewritten(model: onnx.ModelProto, config: DeltaConfig, **options: bool) -> onnx.ModelProto:
    graph = ir.serde.deserialize_model(model)
    rewrite_model(graph, config, **options)
    return ir.serde.serialize_model(graph)


@pytest.mark.parametrize("unfused", [False, True], ids=["fused", "unfused"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_dense(layout: str, mask: str, *, unfused: bool) -> None:
    build, attributes = MASKS[mask]
    dense = attention_model(build, layers=2, layout=layout, scale=0.37, **attributes)
    delta = rewritten(dense, profile("exact").replace(window=2, sinks=1), unfused=unfused)
    assert not any(node.op_type == "Attention" for node in delta.graph.node)
    run_dense, run_delta = runner(dense), runner(delta)
    for new, past in SIZES:
        feeds = random_feeds(dense, new=new, past=past, padding=min(2, past), seed=17 * new + past)
        expected, actual = run_dense(feeds), run_delta(feeds)
        assert expected.keys() == actual.keys()
        for name in expected:
            np.testing.assert_allclose(actual[name], expected[name], atol=TOLERANCE, rtol=0, err_msg=f"{name} {feeds}")


@pytest.mark.parametrize("granularity", ["element", "row"])
def test_window_longer_than_the_sequence_is_dense(granularity: str) -> None:
    """A large θ changes nothing as long as no key has left the window."""
    dense = attention_model(exporter_mask(), layout="projected")
    config = DeltaConfig(
        threshold=9.0, window=15, sinks=0, granularity=granularity, prefill="delta", cache_format="float32"
    )
    feeds = random_feeds(dense, new=4, past=11)
    expected, actual = run_model(dense, feeds), run_model(rewritten(dense, config), feeds)
    np.testing.assert_allclose(actual["output.0"], expected["output.0"], atol=TOLERANCE, rtol=0)


def test_threshold_reaches_the_operator() -> None:
    """With everything held, every key outside the window equals the sink's: the test above is not vacuous."""
    dense = attention_model(exporter_mask(padding=False))
    config = DeltaConfig(
        threshold=1e9, window=2, sinks=1, granularity="element", prefill="delta", cache_format="float32"
    )
    feeds = random_feeds(dense, new=9, past=0)
    actual = run_model(rewritten(dense, config), feeds)
    coded = actual["present.0.key"][:, :, 1:7]
    np.testing.assert_array_equal(coded, np.broadcast_to(feeds["key.0"][:, :, :1], coded.shape))
    np.testing.assert_array_equal(actual["present.0.key"][:, :, 7:], feeds["key.0"][:, :, 7:])
    assert np.abs(actual["output.0"] - run_model(dense, feeds)["output.0"]).max() > 0.01


def test_softcap_is_kept() -> None:
    dense = attention_model(exporter_mask(), softcap=1.5)
    feeds = random_feeds(dense)
    expected, actual = run_model(dense, feeds), run_model(rewritten(dense, profile("exact")), feeds)
    np.testing.assert_allclose(actual["output.0"], expected["output.0"], atol=TOLERANCE, rtol=0)
    without = run_model(attention_model(exporter_mask()), feeds)
    assert np.abs(expected["output.0"] - without["output.0"]).max() > 0.01


def test_float16_cache_rounds_keys_and_values_only() -> None:
    """Float32 activations over a float16 cache: as the dense model on rounded keys and values."""
    dense = attention_model(exporter_mask(), layers=2, layout="projected")
    delta = rewritten(dense, profile("exact").replace(cache_format="float16"))
    feeds = random_feeds(dense, new=3, past=8)
    rounded = {name: array.astype(np.float16) if name.startswith("past") else array for name, array in feeds.items()}
    stored = {
        name: array.astype(np.float16).astype(np.float32) if name.startswith(("past", "key", "value")) else array
        for name, array in feeds.items()
    }
    expected, actual = run_model(dense, stored), run_model(delta, rounded)
    for layer in range(2):
        assert actual[f"present.{layer}.key"].dtype == np.float16
        np.testing.assert_array_equal(actual[f"present.{layer}.key"], expected[f"present.{layer}.key"])
        np.testing.assert_array_equal(actual[f"present.{layer}.value"], expected[f"present.{layer}.value"])
        np.testing.assert_allclose(actual[f"output.{layer}"], expected[f"output.{layer}"], atol=TOLERANCE, rtol=0)


def test_statistics_are_outputs_of_the_model() -> None:
    """Columns 2 and 4 are G·D per visible (query, key), which can be counted by hand."""
    dense = attention_model(exporter_mask(3), layers=2)
    feeds = random_feeds(dense, batch=3, new=4, past=7, padding=2)
    actual = run_model(rewritten(dense, profile("exact"), statistics=True), feeds)
    i, j = 7 + np.arange(4)[:, None], np.arange(11)[None, :]
    causal = (j <= i) & (j > i - 3)
    visible = causal[None] & feeds["attention_mask"].astype(bool)[:, None, :]
    for layer in range(2):
        counts = actual[f"statistics.{layer}"]
        assert counts.shape == (2, 8)
        np.testing.assert_array_equal(counts[:, 2], 3 * 5 * visible.sum())
        np.testing.assert_array_equal(counts[:, 4], counts[:, 2])


@pytest.mark.parametrize("opset", [23, 24])
def test_float16_model(opset: int) -> None:
    """Both round float32 sums to float16 at the end; values lie below 4, where float16 has steps of 2⁻⁹."""
    dense = attention_model(exporter_mask(4), layers=2, layout="projected", dtype=TensorProto.FLOAT16, opset=opset)
    delta = rewritten(dense, profile("exact").replace(cache_format="float16"))
    feeds = random_feeds(dense, new=3, past=6)
    expected, actual = run_model(dense, feeds), run_model(delta, feeds)
    for name, array in expected.items():
        assert actual[name].dtype == np.float16
        assert np.abs(array).max() < 4
        np.testing.assert_allclose(actual[name], array, atol=2**-8, rtol=0, err_msg=name)
