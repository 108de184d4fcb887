"""Models of com.microsoft.GroupQueryAttention: ONNX Runtime's own kernel is what the rewritten model is held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support.attention_models import GraphBuilder, runner
from support.grouped_query_models import (
    HEAD_SIZE,
    KV_HEADS,
    QUERY_HEADS,
    grouped_query_feeds,
    grouped_query_model,
)

from deltallm_onnx import profile
from deltallm_onnx.passes import AttentionSite, Declined, rewrite_model
from deltallm_onnx.passes.match import find_layers

#: (valid tokens per row, new tokens, prompt)
CALLS = [([9, 5], 9, True), ([12, 12], 1, False), ([1, 1], 1, True), ([13], 4, False)]
TOLERANCE = 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packed": True},
        {"rotary": True, "packed": True, "local_window_size": 4},
        {"rotary": True, "rotary_interleaved": 1, "scale": 0.31},
        {"softcap": 1.5, "local_window_size": 6},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_equals_onnxruntime(options: dict[str, Any]) -> None:
    dense = grouped_query_model(**options)
    graph = ir.serde.deserialize_model(dense)
    report = rewrite_model(graph, profile("exact").replace(window=2, sinks=1))
    assert report.rewritten == 2
    run_dense, run_delta = runner(dense), runner(ir.serde.serialize_model(graph))
    for seed, (lengths, new, prompt) in enumerate(CALLS):
        feeds = grouped_query_feeds(dense, lengths, new, prompt=prompt, seed=seed)
        expected, actual = run_dense(feeds), run_delta(feeds)
        for row, length in enumerate(lengths):
            real = min(new, length)  # what right padding computes means nothing
            for name, array in expected.items():
                used = (row, slice(real)) if name.startswith("output") else (row, slice(None), slice(length))
                np.testing.assert_allclose(
                    actual[name][used], array[used], atol=TOLERANCE, rtol=0, err_msg=f"{name} {lengths} {new}"
                )


def test_every_setting_arrives() -> None:
    model = ir.serde.deserialize_model(
        grouped_query_model(rotary=True, rotary_interleaved=1, scale=0.25, softcap=3.0, local_window_size=8)
    )
    rewrite_model(model, profile("balanced").replace(cache_format="float16"))
    node = next(node for node in model.graph if node.op_type == "DeltaAttention")
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    assert attributes["num_heads"] == QUERY_HEADS
    assert attributes["kv_num_heads"] == KV_HEADS
    assert (attributes["do_rotary"], attributes["rotary_interleaved"]) == (1, 1)
    assert (attributes["scale"], attributes["softcap"], attributes["local_window_size"]) == (0.25, 3.0, 8)
    assert {value.dtype for value in model.graph.inputs if (value.name or "").startswith("past")} == {
        ir.DataType.FLOAT16
    }
    assert "com.microsoft" not in model.graph.opset_imports


def _add_input(g: GraphBuilder, place: int, name: str, shape: list[Any]) -> None:
    node = next(node for node in g.nodes if node.op_type == "GroupQueryAttention")
    node.input.extend([""] * (place + 1 - len(node.input)))
    node.input[place] = g.input(name, TensorProto.FLOAT, shape)


@pytest.mark.parametrize(
    ("place", "name", "shape"), [(10, "attention_bias", [1, 1, "sequence", "total"]), (11, "head_sink", [QUERY_HEADS])]
)
def test_optional_inputs_are_carried(place: int, name: str, shape: list[Any]) -> None:
    model = grouped_query_model(layers=1, changed=lambda g: _add_input(g, place, name, shape))
    (site,) = find_layers(ir.serde.deserialize_model(model))
    assert isinstance(site, AttentionSite), site
    graph = ir.serde.deserialize_model(model)
    rewrite_model(graph, profile("exact"))
    node = next(node for node in graph.graph if node.op_type == "DeltaAttention")
    assert node.inputs[place].name == name  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"smooth_softmax": 1}, "smooth_softmax is 1"),
        ({"causal": 0}, "causal is 0"),
        ({"k_quant_type": "PER_TENSOR"}, "k_quant_type is 'PER_TENSOR'"),
        ({"sliding_window_cache": 1}, "sliding_window_cache is 1"),
        ({"qk_output": 1}, "qk_output is 1"),
        ({"local_window_size": 0}, "local_window_size is 0"),
        ({"softcap": -2.0}, "softcap is -2"),
        ({"something_new": 3}, "something_new is 3"),
    ],
)
def test_attribute_is_declined(attributes: dict[str, Any], words: str) -> None:
    (found,) = find_layers(ir.serde.deserialize_model(grouped_query_model(layers=1, **attributes)))
    assert isinstance(found, Declined)
    assert words in found.reason


def test_heads_that_do_not_fit_are_declined() -> None:
    def other_heads(g: GraphBuilder) -> None:
        node = next(node for node in g.nodes if node.op_type == "GroupQueryAttention")
        next(a for a in node.attribute if a.name == "kv_num_heads").i = 2

    def other_width(g: GraphBuilder) -> None:
        next(v for v in g.inputs if v.name == "key.0").type.tensor_type.shape.dim[2].dim_value = 40

    for change, words in (
        (other_heads, "kv_num_heads is 2, and its past_key has 3"),
        (other_width, f"its key has 40 along axis 2 where {KV_HEADS * HEAD_SIZE} are needed"),
    ):
        (found,) = find_layers(ir.serde.deserialize_model(grouped_query_model(layers=1, changed=change)))
        assert isinstance(found, Declined)
        assert words in found.reason


@pytest.mark.parametrize(("place", "name"), [(12, "k_scale"), (14, "q_norm_weight")])
def test_inputs_that_are_not_built_are_declined(place: int, name: str) -> None:
    model = grouped_query_model(layers=1, changed=lambda g: _add_input(g, place, name, [HEAD_SIZE]))
    (found,) = find_layers(ir.serde.deserialize_model(model))
    assert isinstance(found, Declined)
    assert name in found.reason


def test_a_missing_past_is_declined() -> None:
    def without(g: GraphBuilder) -> None:
        node = next(node for node in g.nodes if node.op_type == "GroupQueryAttention")
        node.input[3], node.input[4] = "", ""

    (found,) = find_layers(ir.serde.deserialize_model(grouped_query_model(layers=1, changed=without)))
    assert isinstance(found, Declined)
    assert "no past_key" in found.reason
