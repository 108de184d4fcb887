"""Attention around a cache of Concats: what is understood computes the same afterwards, the rest is declined."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.attention_models import (
    FLOAT,
    HEAD_SIZE,
    INT64,
    KV_HEADS,
    QUERY_HEADS,
    GraphBuilder,
    attention_model,
    exporter_mask,
    key_positions,
    random_feeds,
    runner,
    seen_by_position,
)
from support.softmax_models import GROUP, LOWEST, Spelling, float_constant, softmax_model

from deltallm_onnx import DeltaLLMError, profile
from deltallm_onnx.passes import rewrite_model
from deltallm_onnx.passes.match import find_layers
from deltallm_onnx.passes.raise_opset import raise_opset
from deltallm_onnx.passes.site import AttentionSite, Declined

#: Exact, but for the cache: every row that left the window is coded.
EXACT = profile("exact").replace(window=2, sinks=1)
#: (new, past): first prompts, single tokens, and chunks behind a past.
SIZES = [(1, 0), (5, 0), (1, 6), (3, 11)]
#: One softmax over at most 14 float32 scores of magnitude below 30, computed in another order.
TOLERANCE = 1e-5

SPELLINGS = {
    "torch": Spelling(),
    "scale on the query": Spelling(scale="query"),
    "scale on the key": Spelling(scale="key"),
    "scale on the scores": Spelling(scale="scores"),
    "scores divided": Spelling(scale="divided"),
    "scale from the shape": Spelling(scale="computed", number=HEAD_SIZE**-0.5),
    "scale in the cache": Spelling(scale="past Concat"),
    "scale after the mask": Spelling(scale="after the mask"),
    "no scale": Spelling(scale="none"),
    "heads by Tile": Spelling(heads="tile"),
    "one KV head": Spelling(kv_heads=1),
    "one KV head, broadcast": Spelling(kv_heads=1, heads="none"),
    "one KV head, tiled": Spelling(kv_heads=1, heads="tiled"),
    "as many KV heads": Spelling(kv_heads=QUERY_HEADS, heads="none"),
    "key transposed over three axes": Spelling(swap="reshaped"),
    "mask by Where": Spelling(mask="where"),
    "mask by Where, turned around": Spelling(mask="where not"),
    "lowest number": Spelling(hidden=LOWEST),
    "window": Spelling(seen=exporter_mask(4)),
    "no padding": Spelling(seen=exporter_mask(padding=False)),
    "softcap": Spelling(softcap=1.5),
    "softcap, folded": Spelling(softcap=1.5, scale="capped"),
    "no guard": Spelling(guard=False),
    "three axes": Spelling(joined=True),
    "three axes, one KV head": Spelling(joined=True, kv_heads=1),
    "bias of heads": Spelling(bias="head"),
    "bias of queries": Spelling(bias="full"),
    "bias of three axes": Spelling(bias="three axes"),
    "bias of batch and heads": Spelling(bias="joined", joined=True),
    "several layers": Spelling(layers=3),
    "newer opset": Spelling(opset=23),
    "older opset": Spelling(opset=17),
    "oldest opset with Shape(start)": Spelling(opset=15),
    "Attention": Spelling(operator=True, mask="seen", opset=23),
    "Attention, opset 24": Spelling(operator=True, mask="seen", opset=24),
    "Attention, float mask": Spelling(operator=True, opset=23),
    "Attention, softcap": Spelling(operator=True, mask="seen", opset=23, softcap=1.5),
    "Attention, shared heads": Spelling(operator=True, mask="seen", opset=23, heads="none"),
}


def match(spelling: Spelling) -> AttentionSite | Declined:
    (found,) = find_layers(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(softmax_model(spelling))))
    return found


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.serde.deserialize_model(model)
    rewrite_model(graph, EXACT)
    return ir.serde.serialize_model(graph)


@pytest.mark.parametrize("name", SPELLINGS)
def test_equals_dense(name: str) -> None:
    dense = softmax_model(SPELLINGS[name])
    delta = rewritten(dense)
    left = {node.op_type for node in delta.graph.node}
    assert not left & {"Softmax", "Attention", "MatMul", "Where", "Tanh"}
    assert [value.name for value in delta.graph.output] == [value.name for value in dense.graph.output]
    run_dense, run_delta = runner(dense), runner(delta)
    for new, past in SIZES:
        feeds = random_feeds(dense, new=new, past=past, padding=min(2, past), seed=17 * new + past)
        expected, actual = run_dense(feeds), run_delta(feeds)
        for output in expected:
            np.testing.assert_allclose(actual[output], expected[output], atol=TOLERANCE, rtol=0, err_msg=output)


@st.composite
def spellings(draw: st.DrawFn) -> Spelling:
    """Anything that can be said in one graph."""
    joined, softcap = draw(st.booleans()), draw(st.sampled_from([0.0, 1.5]))
    biases = ["", "joined"] if joined else ["", "head", "full", "three axes"]
    scales = ["query", "key", "both", "scores", "divided", "past Concat", "none"] + ["capped"] * bool(softcap)
    kv_heads = draw(st.sampled_from([1, 2, 3, 6]))
    return Spelling(
        number=draw(st.sampled_from([0.37, 1.0, 2.5])),
        scale=draw(st.sampled_from(scales)),
        heads=draw(st.sampled_from(["expand", "tile", "tiled"] + ["none"] * (kv_heads == 6))),
        kv_heads=kv_heads,
        swap=draw(st.sampled_from(["transpose", "reshaped"])),
        mask=draw(st.sampled_from(["bias", "where", "where not"])),
        hidden=draw(st.sampled_from([-math.inf, LOWEST])),
        seen=exporter_mask(draw(st.sampled_from([0, 3])), padding=draw(st.booleans())),
        bias=draw(st.sampled_from(biases)),
        softcap=softcap,
        guard=draw(st.booleans()),
        joined=joined,
    )


@settings(max_examples=40, deadline=None)
@given(spellings(), st.sampled_from(SIZES))
def test_any_spelling_is_right_or_declined(spelling: Spelling, size: tuple[int, int]) -> None:
    is_tiled = spelling.heads == "tiled" and 1 < spelling.kv_heads < QUERY_HEADS
    found = match(spelling)
    assert isinstance(found, Declined) == is_tiled, found
    if is_tiled:
        return
    dense = softmax_model(spelling)
    feeds = random_feeds(dense, new=size[0], past=size[1], padding=min(2, size[1]))
    expected, actual = runner(dense)(feeds), runner(rewritten(dense))(feeds)
    np.testing.assert_allclose(actual["output.0"], expected["output.0"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("form", ["Softmax", "Attention"])
def test_the_site(form: str) -> None:
    spelling = Spelling(operator=form == "Attention", mask="bias", opset=23, seen=exporter_mask(4), softcap=1.5)
    site = match(spelling)
    assert isinstance(site, AttentionSite), site
    assert (site.num_heads, site.kv_num_heads, site.head_size) == (QUERY_HEADS, KV_HEADS, HEAD_SIZE)
    assert site.scale == pytest.approx(0.37, rel=1e-6)
    assert site.softcap == 1.5
    assert site.mask.sliding_window == 4
    assert site.mask.padding is not None
    assert (site.mask.causal, site.mask.padding.name) == (True, "attention_mask")
    assert (site.query.name, site.output.name) == ("query_heads.0", "attended.0")
    assert site.key is not None
    assert (site.key.name, site.past_key.name, site.present_key.name) == (
        "key_heads.0",
        "past_key_values.0.key",
        "present.0.key",
    )


@pytest.mark.parametrize("scale", ["both", "computed"])
def test_the_usual_scale_is_exact(scale: str) -> None:
    """√s on both sides, each rounded to float32, is 1/√D again, to the last bit."""
    site = match(Spelling(scale=scale, number=HEAD_SIZE**-0.5))
    assert isinstance(site, AttentionSite)
    assert site.scale == 1 / math.sqrt(HEAD_SIZE)


def _node(g: GraphBuilder, op: str, place: int = 0) -> onnx.NodeProto:
    return [node for node in g.nodes if node.op_type == op][place]


def _insert_after(g: GraphBuilder, value: str, op: str, *operands: str, **attributes: object) -> None:
    """Put a node between a value and its readers; the operand "" stands for the value."""
    readers = [node for node in g.nodes if value in node.input]
    place = next(i for i, node in enumerate(g.nodes) if value in node.output) + 1
    changed = g.node(op, *(operand or value for operand in operands), **attributes)
    g.nodes.insert(place, g.nodes.pop())
    for node in readers:
        node.input[:] = [changed if name == value else name for name in node.input]


def _probabilities_read(g: GraphBuilder) -> None:
    g.output(g.node("Abs", "probabilities.0"), FLOAT, ["batch", QUERY_HEADS, "sequence", "total"])


def _probabilities_output(g: GraphBuilder) -> None:
    g.output("probabilities.0", FLOAT, ["batch", QUERY_HEADS, "sequence", "total"])


def _probabilities_scaled(g: GraphBuilder) -> None:
    _insert_after(g, "probabilities.0", "Mul", "", float_constant(g, 2.0))


def _values_scaled(g: GraphBuilder) -> None:
    _insert_after(g, "present.0.value", "Mul", "", float_constant(g, 2.0))


def _keys_changed(g: GraphBuilder) -> None:
    _insert_after(g, "present.0.key", "Tanh", "")


def _present_read(g: GraphBuilder) -> None:
    g.output(g.node("Neg", "present.0.key"), FLOAT, ["batch", KV_HEADS, "total", HEAD_SIZE])


def _expanded_read(g: GraphBuilder) -> None:
    g.output(g.node("Neg", _node(g, "Expand").output[0]), FLOAT, ["batch", KV_HEADS, GROUP, "total", HEAD_SIZE])


def _past_read(g: GraphBuilder) -> None:
    g.output(g.node("Neg", "past_key_values.0.value"), FLOAT, ["batch", KV_HEADS, "past", HEAD_SIZE])


def _present_unused(g: GraphBuilder) -> None:
    del g.outputs[1]


def _past_from_a_node(g: GraphBuilder) -> None:
    g.nodes.insert(0, helper.make_node("Identity", ["past_key_values.0.key"], ["copied"]))
    next(node for node in g.nodes if "present.0.key" in node.output).input[0] = "copied"


def _new_before_past(g: GraphBuilder) -> None:
    node = next(node for node in g.nodes if "present.0.key" in node.output)
    node.input[:] = [node.input[1], node.input[0]]


def _one_cache_for_both(g: GraphBuilder) -> None:
    keys = [node for node in g.nodes if "present.0.key" in node.input]
    for node in (node for node in g.nodes if "present.0.value" in node.input):
        node.input[:] = ["present.0.key" if name == "present.0.value" else name for name in node.input]
    assert keys


def _softmax_over_queries(g: GraphBuilder) -> None:
    next(a for a in _node(g, "Softmax").attribute if a.name == "axis").i = 2


def _scale_by_head(g: GraphBuilder) -> None:
    _insert_after(g, "scores.0", "Mul", "", g.constant(np.arange(1, 7).reshape(1, 6, 1, 1), np.float32))


def _factor_of_five_axes(g: GraphBuilder) -> None:
    _insert_after(g, "present.0.key", "Mul", "", float_constant(g, 2.0, (1, 1, 1, 1, 1)))


def _zero_scale(g: GraphBuilder) -> None:
    _insert_after(g, "scores.0", "Mul", "", float_constant(g, 0.0))


def _capped_twice(g: GraphBuilder) -> None:
    _insert_after(g, "scores.0", "Tanh", "")


def _guard_by_one(g: GraphBuilder) -> None:
    where = next(node for node in g.nodes if node.op_type == "Where" and "probabilities.0" in node.input)
    where.input[1] = float_constant(g, 1.0)


def _sinks(g: GraphBuilder) -> None:
    """A column of the scores without a value, dropped after the Softmax."""
    column = g.constant(np.zeros((3, 6, 4, 1)), np.float32)
    softmax = _node(g, "Softmax")
    place = g.nodes.index(softmax)
    softmax.input[0] = g.node("Concat", softmax.input[0], column, axis=-1)
    g.nodes.insert(place, g.nodes.pop())


def _einsum(g: GraphBuilder) -> None:
    product = _node(g, "MatMul")
    product.op_type = "Einsum"
    product.attribute.append(helper.make_attribute("equation", "bhsd,bhdt->bhst"))


def _query_of_five_heads(g: GraphBuilder) -> None:
    target = next(node for node in g.nodes if node.op_type == "Reshape" and node.input[0] == "query.0")
    target.input[1] = g.constant([0, 0, 5, HEAD_SIZE])


def _second_mask_off_by_one(g: GraphBuilder) -> None:
    """One mask is causal, and a second one hides the query's own key."""
    count = len(g.nodes)
    hides = g.node("Less", key_positions(g), g.node("Sub", g.length("attention_mask", 1), g.length("input_ids", 1)))
    bias = g.node("Where", hides, float_constant(g, 0.0), float_constant(g, -math.inf))
    added, g.nodes[count:] = g.nodes[count:], []
    place = g.nodes.index(_node(g, "Softmax"))
    g.nodes[place:place] = added
    scores = _node(g, "Softmax").input[0]
    _node(g, "Softmax").input[0] = g.node("Add", scores, bias)
    g.nodes.insert(g.nodes.index(_node(g, "Softmax")), g.nodes.pop())


FAULTS: dict[str, tuple[Spelling, Callable[[GraphBuilder], None] | None, str]] = {
    "tiled heads": (Spelling(heads="tiled"), None, "head h meets head h mod Hkv instead of h div (Hq / Hkv)"),
    "tiled heads of Attention": (
        Spelling(heads="tiled", operator=True, mask="seen", opset=23),
        None,
        "repeats all heads one after the other",
    ),
    "keys not transposed": (Spelling(swap="none"), None, "where channel by token is needed"),
    "no mask": (Spelling(mask="none"), None, "it has no mask"),
    "weak mask": (Spelling(hidden=-10000.0), None, "-10000"),
    "weak mask by Where": (Spelling(mask="where", hidden=-10000.0), None, "does not hide them"),
    "not causal": (Spelling(seen=lambda g: g.node("Not", seen_by_position(g))), None, "a query does not see itself"),
    "mask shrunk": (Spelling(scale="after the mask", number=1e-3), None, "multiplies scores by 0.001 after the mask"),
    "mask turned": (Spelling(scale="after the mask", number=-1.0), None, "multiplies scores by -1 after the mask"),
    "second mask": (Spelling(), _second_mask_off_by_one, "neither causality"),
    "probabilities read": (Spelling(), _probabilities_read, "are read by Abs"),
    "probabilities an output": (Spelling(), _probabilities_output, "'probabilities.0' are a graph output"),
    "probabilities scaled": (Spelling(), _probabilities_scaled, "probabilities are changed by node"),
    "guard by one": (Spelling(), _guard_by_one, "'probabilities.0' are read by IsNaN"),
    "values scaled": (Spelling(), _values_scaled, "its values are multiplied by 2"),
    "keys changed": (Spelling(), _keys_changed, "not come from a cache, past and new concatenated, but through Tanh"),
    "present read": (Spelling(), _present_read, "'present.0.key' on its way is also read by Neg"),
    "expanded keys read": (Spelling(), _expanded_read, "on its way is also read by Neg"),
    "past read": (Spelling(), _past_read, "'past_key_values.0.value' on its way is also read by Neg"),
    "present unused": (Spelling(), _present_unused, "'present.0.key', past and new, is not a graph output"),
    "past from a node": (Spelling(), _past_from_a_node, "not of a past (a graph input) and new ones"),
    "new before past": (Spelling(), _new_before_past, "not of a past (a graph input) and new ones"),
    "one cache for both": (Spelling(), _one_cache_for_both, "'present.0.key' on its way is also read by"),
    "softmax over queries": (Spelling(), _softmax_over_queries, "runs along axis 2 of 4 axes"),
    "scale by head": (Spelling(), _scale_by_head, "(Mul), not with a number"),
    "factor of five axes": (Spelling(), _factor_of_five_axes, "not come from a cache, past and new concatenated, but"),
    "no scale left": (Spelling(), _zero_scale, "its scale is 0"),
    "capped twice": (Spelling(softcap=1.5), _capped_twice, "scaled or capped again"),
    "sinks": (Spelling(), _sinks, "a column of their own"),
    "Einsum": (Spelling(), _einsum, "(Einsum), which is not understood"),
    "five query heads": (Spelling(), _query_of_five_heads, "its query has 5 heads and its key, repeated for them, 6"),
    "double": (Spelling(dtype=TensorProto.DOUBLE), None, "DOUBLE"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_declined(name: str) -> None:
    spelling, change, words = FAULTS[name]
    found = match(Spelling(**{**spelling.__dict__, "changed": change}))
    assert isinstance(found, Declined), found
    assert words in found.reason


def test_is_causal_with_a_past_is_declined() -> None:
    """Query i sees keys j ≤ i of all, which is causality only where nothing is past."""

    def causal(g: GraphBuilder) -> None:
        _node(g, "Attention").attribute.append(helper.make_attribute("is_causal", 1))

    found = match(Spelling(operator=True, mask="seen", opset=23, changed=causal))
    assert isinstance(found, Declined)
    assert "its is_causal is 1 although its keys begin with a past" in found.reason


def test_layers_that_share_a_cache_are_declined() -> None:
    def share(g: GraphBuilder) -> None:
        for node in g.nodes:
            node.input[:] = [name.replace("present.1.", "present.0.") for name in node.input]

    model = softmax_model(Spelling(layers=2, changed=share))
    for found in find_layers(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))):
        assert isinstance(found, Declined)
        assert "as where layers share one cache" in found.reason


def _router(g: GraphBuilder) -> None:
    """Which two of four experts see a token."""
    weights = g.constant(np.ones((QUERY_HEADS * HEAD_SIZE, 4)), np.float32)
    logits = g.node("MatMul", "output.0", g.node("Mul", weights, float_constant(g, 0.5)))
    shares = g.node("Softmax", logits, axis=-1)
    best, _ = g.output("best", FLOAT, ["batch", "sequence", 2]), g.output("experts", INT64, ["batch", "sequence", 2])
    g.nodes.append(helper.make_node("TopK", [shares, g.constant([2])], [best, "experts"], axis=-1))


def test_a_router_of_experts_is_no_attention() -> None:
    model = ir.serde.deserialize_model(softmax_model(Spelling(changed=_router)))
    (site,) = find_layers(model)
    assert isinstance(site, Declined | AttentionSite)
    assert rewrite_model(model, EXACT).rewritten == 1
    assert [node.op_type for node in model.graph].count("Softmax") == 1


def _of_two_forms() -> onnx.ModelProto:
    """Layer 0 is a Softmax, layer 1 an Attention node of its own graph with layer 0's inputs."""
    decomposed = softmax_model(Spelling(opset=23))
    operator = attention_model(exporter_mask(), layout="projected")
    shared = ["input_ids", "attention_mask"]
    for values in (operator.graph.input, operator.graph.output):
        for value in (value for value in values if value.name not in shared):
            for node in operator.graph.node:
                for names in (node.input, node.output):
                    names[:] = [_second(name) if name == value.name else name for name in names]
            value.name = _second(value.name)
    operator = onnx.compose.add_prefix(operator, "b/", rename_inputs=False, rename_outputs=False)
    kept = [value for value in operator.graph.input if value.name not in shared]
    graph = helper.make_graph(
        [*decomposed.graph.node, *operator.graph.node],
        "mixed",
        [*decomposed.graph.input, *kept],
        [*decomposed.graph.output, *operator.graph.output],
        [*decomposed.graph.initializer, *operator.graph.initializer],
        value_info=operator.graph.value_info,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def _second(name: str) -> str:
    return name.replace(".0", ".1")


def test_two_forms_in_one_model_are_refused() -> None:
    with pytest.raises(
        DeltaLLMError, match=r"mixes forms of attention \(layer 0 is Softmax and layer 1 is Attention\)"
    ):
        rewrite_model(ir.serde.deserialize_model(_of_two_forms()), EXACT)


def test_a_cache_that_no_layer_reads_is_refused() -> None:
    """A third cache that grows, read by something that is no Softmax."""

    def add_cache(g: GraphBuilder) -> None:
        past = g.input("state.in", FLOAT, ["batch", KV_HEADS, "past", HEAD_SIZE])
        g.node("Concat", past, "key_heads.0", axis=2, output="state.out")
        g.output("state.out", FLOAT, ["batch", KV_HEADS, "total", HEAD_SIZE])

    model = ir.serde.deserialize_model(softmax_model(Spelling(changed=add_cache)))
    with pytest.raises(DeltaLLMError, match=r"cache inputs 'state\.in' are read by no attention that was found"):
        rewrite_model(model, EXACT)
    assert rewrite_model(model, EXACT, allow_partial=True).rewritten == 1


def test_packed_caches_need_no_newer_opset() -> None:
    model = ir.serde.deserialize_model(softmax_model(Spelling(opset=17)))
    rewrite_model(model, profile("exact").replace(cache_format="int8"))
    assert model.opset_imports[""] == 17


def test_an_opset_that_is_not_converted_is_refused() -> None:
    model = softmax_model(Spelling(opset=18))
    model.opset_import[0].version = 12
    with pytest.raises(DeltaLLMError, match=r"uses opset 12, .* or choose a packed cache_format"):
        raise_opset(ir.serde.deserialize_model(model))
