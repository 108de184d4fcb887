"""Models of com.microsoft.GroupQueryAttention: ONNX Runtime's own kernel is what the rewritten model is held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
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


def test_window_sized_caches_become_whole_ones() -> None:
    """ONNX Runtime's kernel keeps 11 rows and moves them; ours keeps all and hides those behind the window."""
    window, rows = 6, 11
    dense = grouped_query_model(rotary=True, packed=True, local_window_size=window, sliding_window_cache=1)
    for value in (*dense.graph.input, *dense.graph.output):
        if "key" in value.name or "value" in value.name:
            axes = value.type.tensor_type.shape.dim
            axes[2].dim_param = axes[2].dim_param.replace("past", "past_sliding_length")
    graph = ir.serde.deserialize_model(dense)
    rewrite_model(graph, profile("exact").replace(window=2, sinks=1))
    run_dense, run_delta = runner(dense), runner(ir.serde.serialize_model(graph))
    shapes = {value.name: [str(dim) for dim in value.shape or ()] for value in graph.graph.inputs}
    assert shapes["past_key_values.1.value"] == ["batch", str(KV_HEADS), "past_sequence_length", str(HEAD_SIZE)]
    assert "sliding_window_cache" not in next(n for n in graph.graph if n.op_type == "DeltaAttention").attributes
    names = [f"{layer}.{role}" for layer in range(2) for role in ("key", "value")]
    small = {name: np.zeros((1, KV_HEADS, rows, HEAD_SIZE), np.float32) for name in names}
    whole = {name: array[:, :, :0] for name, array in small.items()}
    random, total = np.random.default_rng(17), 0
    for new in (14, 1, 1, 4, *[1] * 25):
        total += new
        width = (QUERY_HEADS + 2 * KV_HEADS) * HEAD_SIZE
        feeds = {f"query.{layer}": random.standard_normal((1, new, width)).astype(np.float32) for layer in range(2)}
        feeds["attention_mask"] = np.ones((1, total), np.int64)
        outcomes = [
            run({**feeds, **{f"past_key_values.{name}": array for name, array in caches.items()}})
            for run, caches in ((run_dense, small), (run_delta, whole))
        ]
        for name in ("output.0", "output.1"):
            expected, actual = (outcome[name] for outcome in outcomes)
            np.testing.assert_allclose(actual, expected, atol=TOLERANCE, rtol=0, err_msg=f"{name} {total}")
        small, whole = ({name: outcome[f"present.{name}"] for name in names} for outcome in outcomes)
    assert small["0.key"].shape[2] == rows
    assert total > 3 * rows


@pytest.mark.parametrize("cache_format", ["float32", "int8"])
def test_caches_without_numbers_get_them(cache_format: str) -> None:
    """The builder of onnxruntime-genai 0.18 has a name in the place of the head size."""
    dense = grouped_query_model(packed=True)
    for value in (*dense.graph.input, *dense.graph.output):
        if "key" in value.name or "value" in value.name:
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    graph = ir.serde.deserialize_model(dense)
    rewrite_model(graph, profile("exact").replace(window=8, cache_format=cache_format))
    last = HEAD_SIZE if cache_format == "float32" else HEAD_SIZE + 4
    caches = [v for v in (*graph.graph.inputs, *graph.graph.outputs) if "key" in str(v.name) or "value" in str(v.name)]
    assert len(caches) == 8
    assert {(v.shape[1], v.shape[3]) for v in caches if v.shape is not None} == {(KV_HEADS, last)}


@pytest.mark.parametrize("packed", [True, False])
def test_projections_that_no_shape_is_known_of(*, packed: bool) -> None:
    """MatMulNBits is no standard operator: where nobody wrote its output's type and shape, its attribute N tells."""
    hidden = 32

    def quantised(g: GraphBuilder) -> None:
        node = next(node for node in g.nodes if node.op_type == "GroupQueryAttention")
        random = np.random.default_rng(23)
        g.input("hidden", TensorProto.FLOAT, ["batch", "sequence", hidden])
        for name in [name for name in node.input[:3] if name]:
            width = next(v for v in g.inputs if v.name == name).type.tensor_type.shape.dim[2].dim_value
            g.inputs[:] = [value for value in g.inputs if value.name != name]
            codes = g.constant(random.integers(0, 256, (width, 1, hidden // 2)), np.uint8)
            scales = g.constant(random.uniform(0.01, 0.1, (width, 1)), np.float32)
            attributes = {"K": hidden, "N": width, "bits": 4, "block_size": hidden}
            inputs = ["hidden", codes, scales]
            product = helper.make_node("MatMulNBits", inputs, [name], None, None, "com.microsoft", None, **attributes)
            g.nodes.insert(g.nodes.index(node), product)

    dense = grouped_query_model(layers=1, packed=packed, rotary=True, changed=quantised)
    graph = ir.serde.deserialize_model(dense)
    rewrite_model(graph, profile("exact"))
    feeds = grouped_query_feeds(dense, [12, 12], 1, prompt=False, seed=2)
    expected, actual = runner(dense)(feeds), runner(ir.serde.serialize_model(graph))(feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=TOLERANCE, rtol=0, err_msg=name)


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
        ({"k_quant_type": "PER_TENSOR"}, "k_quant_type is 'PER_TENSOR', which DeltaAttention does not have: rebuild"),
        ({"kv_cache_bit_width": 8}, "kv_cache_bit_width is 8, which DeltaAttention does not have: rebuild the model"),
        ({"sliding_window_cache": 1}, "sliding_window_cache is 1 but it has no local_window_size"),
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
        (other_width, f"its key has 40 channels, which {KV_HEADS} heads do not share evenly"),
    ):
        (found,) = find_layers(ir.serde.deserialize_model(grouped_query_model(layers=1, changed=change)))
        assert isinstance(found, Declined)
        assert words in found.reason


@pytest.mark.parametrize(
    ("place", "name", "remedy"),
    [(12, "k_scale", "without kv_cache_quant_scheme"), (14, "q_norm_weight", "rebuild the model for -e cpu")],
)
def test_inputs_that_are_not_built_are_declined(place: int, name: str, remedy: str) -> None:
    model = grouped_query_model(layers=1, changed=lambda g: _add_input(g, place, name, [HEAD_SIZE]))
    (found,) = find_layers(ir.serde.deserialize_model(model))
    assert isinstance(found, Declined)
    assert f"({name})" in found.reason
    assert remedy in found.reason


def test_tables_wider_than_the_heads_are_declined() -> None:
    def wider(g: GraphBuilder) -> None:
        node = next(node for node in g.nodes if node.op_type == "GroupQueryAttention")
        node.input[7] = g.constant(np.ones((50, HEAD_SIZE // 2 + 1)), np.float32)

    (found,) = find_layers(ir.serde.deserialize_model(grouped_query_model(layers=1, rotary=True, changed=wider)))
    assert isinstance(found, Declined)
    assert f"rotates {HEAD_SIZE + 2} channels of heads that have {HEAD_SIZE}" in found.reason


def test_a_missing_past_is_declined() -> None:
    def without(g: GraphBuilder) -> None:
        node = next(node for node in g.nodes if node.op_type == "GroupQueryAttention")
        node.input[3], node.input[4] = "", ""

    (found,) = find_layers(ir.serde.deserialize_model(grouped_query_model(layers=1, changed=without)))
    assert isinstance(found, Declined)
    assert "no past_key" in found.reason
