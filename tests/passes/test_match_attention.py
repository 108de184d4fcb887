"""What the attention matcher takes, and every reason for which it declines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from support.attention_models import (
    HEAD_SIZE,
    KV_HEADS,
    QUERY_HEADS,
    GraphBuilder,
    attention_model,
    exporter_mask,
    seen_by_position,
)

from deltallm_onnx.passes.match import find_layers
from deltallm_onnx.passes.site import AttentionSite, Declined

FLOAT, FLOAT16, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT64


def match(model: onnx.ModelProto) -> AttentionSite | Declined:
    (found,) = find_layers(ir.serde.deserialize_model(model))
    return found


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("layout", ["heads_first", "flat", "projected"])
def test_geometry(layout: str, opset: int) -> None:
    site = match(attention_model(exporter_mask(7), layout=layout, opset=opset, softcap=20.0))
    assert isinstance(site, AttentionSite), site
    assert (site.num_heads, site.kv_num_heads, site.head_size) == (QUERY_HEADS, KV_HEADS, HEAD_SIZE)
    assert site.heads_first == (layout != "flat")
    assert site.scale == pytest.approx(1 / math.sqrt(HEAD_SIZE))
    assert site.softcap == 20.0
    assert site.mask.sliding_window == 7
    assert (site.past_key.name, site.past_value.name) == ("past_key_values.0.key", "past_key_values.0.value")
    assert (site.present_key.name, site.present_value.name) == ("present.0.key", "present.0.value")


def test_scale_is_read() -> None:
    site = match(attention_model(exporter_mask(), scale=0.125))
    assert isinstance(site, AttentionSite)
    assert site.scale == 0.125


def test_layers_are_numbered_by_their_caches() -> None:
    def renumber(g: GraphBuilder) -> None:
        for proto in [*g.inputs, *g.outputs]:
            proto.name = proto.name.replace("past_key_values.1.", "past_key_values.7.")
        for node in g.nodes:
            node.input[:] = [name.replace("past_key_values.1.", "past_key_values.7.") for name in node.input]

    model = ir.serde.deserialize_model(attention_model(exporter_mask(), layers=2, changed=renumber))
    assert [found.layer for found in find_layers(model)] == [0, 7]


def _attention(g: GraphBuilder) -> onnx.NodeProto:
    return next(node for node in g.nodes if node.op_type == "Attention")


def _shape_of(values: list[onnx.ValueInfoProto], name: str) -> onnx.TensorShapeProto:
    return next(value for value in values if value.name == name).type.tensor_type.shape


def _without_past(g: GraphBuilder) -> None:
    node = _attention(g)
    node.input[4], node.input[5] = "", ""


def _without_present(g: GraphBuilder) -> None:
    del _attention(g).output[1:]
    del g.outputs[1:]


def _unused_present(g: GraphBuilder) -> None:
    del g.outputs[2]


def _past_from_a_node(g: GraphBuilder) -> None:
    node = _attention(g)
    g.nodes.insert(0, helper.make_node("Identity", [node.input[4]], ["copied"]))
    node.input[4] = "copied"


def _past_returned(g: GraphBuilder) -> None:
    g.output("past_key_values.0.key", FLOAT, ["batch", KV_HEADS, "past", HEAD_SIZE])


def _past_read_elsewhere(g: GraphBuilder) -> None:
    g.output(g.node("Abs", "past_key_values.0.key"), FLOAT, ["batch", KV_HEADS, "past", HEAD_SIZE])


def _present_read_elsewhere(g: GraphBuilder) -> None:
    g.output(g.node("Neg", "present.0.value"), FLOAT, ["batch", KV_HEADS, "total", HEAD_SIZE])


def _one_cache_for_both(g: GraphBuilder) -> None:
    node = _attention(g)
    node.input[5] = node.input[4]


def _unequal_value_size(g: GraphBuilder) -> None:
    for values, name in ((g.inputs, "past_key_values.0.value"), (g.outputs, "present.0.value"), (g.inputs, "value.0")):
        _shape_of(values, name).dim[3].dim_value = 4
    _shape_of(g.outputs, "output.0").dim[3].dim_value = 4


def _unknown_head_size(g: GraphBuilder) -> None:
    _shape_of(g.inputs, "past_key_values.0.key").dim[3].dim_param = "head_size"


def _query_of_other_size(g: GraphBuilder) -> None:
    _shape_of(g.inputs, "query.0").dim[3].dim_value = 7


def _heads_do_not_divide(g: GraphBuilder) -> None:
    _shape_of(g.inputs, "query.0").dim[1].dim_value = 7


def _cross_attention(g: GraphBuilder) -> None:
    _shape_of(g.inputs, "key.0").dim[2].dim_param = "encoder_sequence"


def _scores_output(g: GraphBuilder) -> None:
    _attention(g).output.append("scores")
    g.output("scores", FLOAT, ["batch", QUERY_HEADS, "sequence", "total"])


def _float_mask(g: GraphBuilder) -> str:
    mask = g.node("Cast", seen_by_position(g), to=FLOAT, output="bias")
    g.typed.append(helper.make_tensor_value_info(mask, FLOAT, ["sequence", "total"]))
    return mask


def _float_mask_of_unknown_type(g: GraphBuilder) -> str:
    return g.node("Cast", seen_by_position(g), to=FLOAT)


def _external_cache(g: GraphBuilder) -> None:
    node = _attention(g)
    node.input.append(g.input("nonpad_kv_seqlen", INT64, ["batch"]))


FAULTS: dict[str, tuple[Callable[[GraphBuilder], None], str]] = {
    "no past": (_without_past, "no past_key"),
    "no present": (_without_present, "no present_key and present_value"),
    "unused present": (_unused_present, "present_value 'present.0.value' is not a graph output"),
    "past from a node": (_past_from_a_node, "past_key 'copied' is not a graph input"),
    "past returned": (_past_returned, "its past_key 'past_key_values.0.key' is also a graph output"),
    "past read elsewhere": (_past_read_elsewhere, "'past_key_values.0.key' is also read by Abs"),
    "present read elsewhere": (_present_read_elsewhere, "'present.0.value' is also read by Neg"),
    "one cache for both": (_one_cache_for_both, "as past key and as past value"),
    "unequal value size": (_unequal_value_size, "keys are 2 heads of 5 and its values 2 of 4"),
    "unknown head size": (_unknown_head_size, "axis 3 of 'past_key_values.0.key'"),
    "query of another size": (_query_of_other_size, "its query has 7 along axis 3"),
    "heads do not divide": (_heads_do_not_divide, "7 query heads for 2 key/value heads"),
    "cross attention": (_cross_attention, "query has sequence new tokens and its key encoder_sequence"),
    "scores output": (_scores_output, "qk_matmul_output"),
    "external cache": (_external_cache, "nonpad_kv_seqlen"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_declined(name: str) -> None:
    change, words = FAULTS[name]
    opset = 24 if name == "external cache" else 23
    found = match(attention_model(exporter_mask(), opset=opset, changed=change))
    assert isinstance(found, Declined), found
    assert words in found.reason
    assert found.node == "attention.0"


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"softmax_precision": FLOAT16}, "softmax_precision is FLOAT16"),
        ({"softcap": -1.0}, "softcap -1"),
        ({"scale": 0.0}, "scale is 0"),
        ({"scale": math.nan}, "scale is nan"),
    ],
)
def test_attribute_is_declined(attributes: dict[str, Any], words: str) -> None:
    found = match(attention_model(exporter_mask(), **attributes))
    assert isinstance(found, Declined)
    assert words in found.reason


@pytest.mark.parametrize(
    ("attributes", "words"),
    [({"q_num_heads": None}, "q_num_heads is missing"), ({"kv_num_heads": 3}, "kv_num_heads is 3")],
)
def test_head_counts_of_flat_inputs(attributes: dict[str, Any], words: str) -> None:
    found = match(attention_model(exporter_mask(), layout="flat", **attributes))
    assert isinstance(found, Declined)
    assert words in found.reason


def test_no_mask_without_is_causal_is_declined() -> None:
    found = match(attention_model(None))
    assert isinstance(found, Declined)
    assert "no mask and its is_causal is 0" in found.reason


@pytest.mark.parametrize("mask", [_float_mask, _float_mask_of_unknown_type])
def test_masks_of_ones_and_zeros_are_declined(mask: Callable[[GraphBuilder], str]) -> None:
    found = match(attention_model(mask))
    assert isinstance(found, Declined)
    assert "adds 1 and 0 to the scores" in found.reason


def test_double_is_declined() -> None:
    found = match(attention_model(exporter_mask(), dtype=DOUBLE))
    assert isinstance(found, Declined)
    assert "type DOUBLE" in found.reason


def test_attention_in_a_function_is_declined() -> None:
    model = ir.serde.deserialize_model(attention_model(exporter_mask(), layout="flat"))
    node = next(n for n in model.graph if n.op_type == "Attention")
    inner = [ir.Value(name=f"x{i}") for i in range(6)]
    attention = ir.node("Attention", inner, dict(node.attributes), num_outputs=3)
    body = ir.Graph(inner, attention.outputs, nodes=[attention], opset_imports={"": 23})
    model.functions[("custom", "Layer", "")] = ir.Function("custom", "Layer", graph=body, attributes=[])
    dense, nested = find_layers(model)
    assert isinstance(dense, AttentionSite)
    assert isinstance(nested, Declined)
    assert "inside a subgraph or a function" in nested.reason
