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


def _before(g: GraphBuilder, reader: onnx.NodeProto, place: int, build: Callable[[str], str]) -> None:
    """Put nodes between a node and one of its inputs."""
    count = len(g.nodes)
    reader.input[place] = build(reader.input[place])
    added, g.nodes[count:] = g.nodes[count:], []
    where = g.nodes.index(reader)
    g.nodes[where:where] = added


def _largest_subtracted(g: GraphBuilder, scores: str, axes: str | list[int]) -> str:
    return g.node("Sub", scores, g.node("ReduceMax", scores, axes, keepdims=1))


def _shifted_before_the_cap(g: GraphBuilder) -> None:
    _before(g, _node(g, "Div"), 0, lambda scores: _largest_subtracted(g, scores, [-1]))


def _shifted_along_fed_axes(g: GraphBuilder) -> None:
    g.initializers.append(onnx.numpy_helper.from_array(np.array([-1]), "axes"))
    g.input("axes", INT64, [1])
    _before(g, _node(g, "Softmax"), 0, lambda scores: _largest_subtracted(g, scores, "axes"))


def _guard(g: GraphBuilder) -> onnx.NodeProto:
    return next(node for node in g.nodes if node.op_type == "Where" and "probabilities.0" in node.input)


def _guard_fed(g: GraphBuilder) -> None:
    g.input(_guard(g).input[1], FLOAT, [])


def _guard_widens(g: GraphBuilder) -> None:
    _guard(g).input[1] = float_constant(g, 0.0, (3, 1, 1, 1))


def _guard_of_five_axes(g: GraphBuilder) -> None:
    _guard(g).input[1] = float_constant(g, 0.0, (1, 1, 1, 1, 1))


def _hidden(g: GraphBuilder) -> str:
    where = next(node for node in g.nodes if node.op_type == "Where" and "probabilities.0" not in node.input)
    return where.input[2]


def _hidden_fed(g: GraphBuilder) -> None:
    g.input(_hidden(g), FLOAT, [])


def _hidden_widens(g: GraphBuilder) -> None:
    wide, place = float_constant(g, -math.inf, (3, 1, 1, 1)), _hidden(g)
    for node in g.nodes:
        node.input[:] = [wide if name == place else name for name in node.input]


def _dropout_fed(g: GraphBuilder) -> None:
    g.initializers.append(onnx.numpy_helper.from_array(np.array(False), "training"))
    g.input("training", TensorProto.BOOL, [])
    _insert_after(g, "probabilities.0", "Dropout", "", float_constant(g, 0.5), "training")


def _scale_fed(g: GraphBuilder) -> None:
    g.input(next(name for name in _node(g, "Mul").input if name.startswith("constant")), FLOAT, [])


def _rounded(value: str) -> Callable[[GraphBuilder], None]:
    """Through float16 and back."""

    def change(g: GraphBuilder) -> None:
        _insert_after(g, value, "Cast", "", to=FLOAT)
        back = next(node for node in g.nodes if node.op_type == "Cast" and value in node.input)
        _before(g, back, 0, lambda name: g.node("Cast", name, to=TensorProto.FLOAT16))

    return change


def _scores_output(g: GraphBuilder) -> None:
    g.output("scores.0", FLOAT, ["batch", QUERY_HEADS, "sequence", "total"])


def _scores_read(g: GraphBuilder) -> None:
    g.output(g.node("Neg", "scores.0"), FLOAT, ["batch", QUERY_HEADS, "sequence", "total"])


def _scores_shape_returned(g: GraphBuilder) -> None:
    g.output(g.node("Add", g.node("Shape", "scores.0"), 1), INT64, [4])


def _capped_scores_read(g: GraphBuilder) -> None:
    tanh = _node(g, "Tanh").output[0]
    g.output(g.node("Neg", tanh), FLOAT, ["batch", QUERY_HEADS, "sequence", "total"])


def _read_in_a_branch(value: str) -> Callable[[GraphBuilder], None]:
    def change(g: GraphBuilder) -> None:
        g.initializers.append(onnx.numpy_helper.from_array(np.array(True), "condition"))

        def branch(name: str) -> onnx.GraphProto:
            node, output = helper.make_node("Neg", [value], [name]), helper.make_tensor_value_info(name, FLOAT, None)
            return helper.make_graph([node], name, [], [output])

        node = helper.make_node("If", ["condition"], ["chosen"], then_branch=branch("a"), else_branch=branch("b"))
        g.nodes.append(node)
        g.output("chosen", FLOAT, ["b", "h", "s", "t"])

    return change


def _concat_of_one(g: GraphBuilder) -> None:
    readers = [node for node in g.nodes if "present.0.key" in node.input]
    _before(g, readers[0], 0, lambda _: g.node("Concat", "key_heads.0", axis=2))
    for node in readers:
        node.input[:] = [readers[0].input[0] if name == "present.0.key" else name for name in node.input]


def _lengths_nested(g: GraphBuilder) -> None:
    def nest(lengths: str) -> str:
        for _ in range(1200):
            lengths = g.node("Concat", lengths, axis=0)
        return lengths

    _before(g, _node(g, "Expand"), 1, nest)


def _batch_of_four(output: str) -> Callable[[GraphBuilder], None]:
    def change(g: GraphBuilder) -> None:
        product = next(node for node in g.nodes if output in node.output)
        _before(g, product, 1, lambda name: g.node("Expand", name, [4, 1, 1, 1]))

    return change


def _query_of_another_batch(g: GraphBuilder) -> None:
    query = next(value for value in g.inputs if value.name == "query.0")
    query.type.tensor_type.shape.dim[0].dim_param = "query_batch"


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
    "shifted before the cap": (Spelling(softcap=1.5), _shifted_before_the_cap, "before they are capped or masked"),
    "shifted along fed axes": (Spelling(), _shifted_along_fed_axes, "(Sub), which is not understood"),
    "guard fed": (Spelling(), _guard_fed, "'probabilities.0' are read by IsNaN"),
    "guard that widens": (Spelling(), _guard_widens, "'probabilities.0' are read by IsNaN"),
    "guard of five axes": (Spelling(), _guard_of_five_axes, "'probabilities.0' are read by IsNaN"),
    "hidden number fed": (Spelling(mask="where", guard=False), _hidden_fed, "which does not hide them"),
    "hidden number widens": (Spelling(mask="where", guard=False), _hidden_widens, "which is not one fixed number"),
    "Dropout fed": (Spelling(guard=False), _dropout_fed, "(Dropout)"),
    "scale fed": (Spelling(scale="scores"), _scale_fed, "(Mul), not with a number"),
    "keys rounded": (Spelling(), _rounded("present.0.key"), "its key is rounded from FLOAT to FLOAT16"),
    "values rounded": (Spelling(), _rounded("present.0.value"), "its value is rounded from FLOAT to FLOAT16"),
    "scores rounded": (Spelling(), _rounded("scores.0"), "its scores are rounded to FLOAT16"),
    "probabilities rounded": (Spelling(guard=False), _rounded("probabilities.0"), "its scores are rounded to FLOAT16"),
    "scores an output": (Spelling(), _scores_output, "its scores 'scores.0' are a graph output"),
    "scores read": (Spelling(), _scores_read, "its scores 'scores.0' are also read by Neg"),
    "shape of scores returned": (Spelling(), _scores_shape_returned, "its scores 'scores.0' are also read by Shape"),
    "capped scores read": (Spelling(softcap=1.5), _capped_scores_read, "are also read by Neg"),
    "scores read in a branch": (Spelling(), _read_in_a_branch("scores.0"), "'scores.0' are also read by Neg"),
    "Concat of one": (Spelling(), _concat_of_one, "its key is a Concat of less than a past and new ones"),
    "lengths nested": (Spelling(), _lengths_nested, "joined of more than 64 parts"),
    "keys of four rows": (Spelling(), _batch_of_four("scores.0"), "repeats the axis batch of length batch to 4"),
    "values of four rows": (Spelling(), _batch_of_four("attended.0"), "repeats the axis batch of length batch to 4"),
    "query of another batch": (Spelling(), _query_of_another_batch, "its query has the batch query_batch"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_declined(name: str) -> None:
    spelling, change, words = FAULTS[name]
    found = match(Spelling(**{**spelling.__dict__, "changed": change}))
    assert isinstance(found, Declined), found
    assert words in found.reason


@pytest.mark.parametrize("axes", ["input", "attribute"])
def test_the_largest_score_may_be_subtracted(axes: str) -> None:
    """A Softmax does not notice what a whole row shares."""

    def shift(g: GraphBuilder) -> None:
        if axes == "input":
            _before(g, _node(g, "Softmax"), 0, lambda scores: _largest_subtracted(g, scores, [-1]))
            return

        def subtracted(scores: str) -> str:
            return g.node("Sub", scores, g.node("ReduceMax", scores, axes=[-1], keepdims=1))

        _before(g, _node(g, "Softmax"), 0, subtracted)

    dense = softmax_model(Spelling(changed=shift, softcap=1.5, opset=18 if axes == "input" else 17))
    feeds = random_feeds(dense, new=3, past=6, padding=0)
    expected, actual = runner(dense)(feeds), runner(rewritten(dense))(feeds)
    np.testing.assert_allclose(actual["output.0"], expected["output.0"], atol=TOLERANCE, rtol=0)


def test_a_scale_is_rounded_as_its_casts_round_it() -> None:
    """0.3 in float16 is 0.30004883, and its inverse cubed is 0.05 percent off."""

    def scale(g: GraphBuilder) -> None:
        def scaled(scores: str) -> str:
            small = g.node("Cast", g.node("Cast", float_constant(g, 0.3), to=TensorProto.FLOAT16), to=FLOAT)
            return g.node("Mul", scores, g.node("Pow", small, float_constant(g, -3.0)))

        _before(g, next(node for node in g.nodes if "scores.0" in node.input), 0, scaled)

    site = match(Spelling(scale="none", changed=scale))
    assert isinstance(site, AttentionSite), site
    assert site.scale == pytest.approx(float(np.float16(0.3)) ** -3, rel=1e-9)


@pytest.mark.parametrize("cache_format", ["float32", "int8"])
def test_a_softmax_before_opset_13_is_declined(cache_format: str) -> None:
    """Without its attribute it runs over heads, queries and keys together."""
    g = GraphBuilder(12)
    g.input("input_ids", INT64, ["batch", "sequence"])
    heads = {}
    for name in ("query", "key", "value"):
        heads[name] = g.input(f"{name}.0", FLOAT, ["batch", QUERY_HEADS, "sequence", HEAD_SIZE])
    for name in ("key", "value"):
        past = g.input(f"past_key_values.0.{name}", FLOAT, ["batch", QUERY_HEADS, "past", HEAD_SIZE])
        heads[name] = g.node("Concat", past, heads[name], axis=2, output=f"present.0.{name}")
    scores = g.node("MatMul", heads["query"], g.node("Transpose", heads["key"], perm=[0, 1, 3, 2]))
    g.node("MatMul", g.node("Softmax", scores), heads["value"], output="output.0")
    g.output("output.0", FLOAT, ["batch", QUERY_HEADS, "sequence", HEAD_SIZE])
    for name in ("key", "value"):
        g.output(f"present.0.{name}", FLOAT, ["batch", QUERY_HEADS, "total", HEAD_SIZE])
    model = ir.serde.deserialize_model(g.build())
    with pytest.raises(DeltaLLMError, match=r"its Softmax is of opset 12, where it may run along several axes at once"):
        rewrite_model(model, profile("exact").replace(cache_format=cache_format))


def test_layers_of_one_product_are_declined() -> None:
    def share(g: GraphBuilder) -> None:
        for node in g.nodes:
            node.input[:] = ["scores.0" if name == "scores.1" else name for name in node.input]

    model = ir.serde.deserialize_model(softmax_model(Spelling(layers=2, changed=share)))
    with pytest.raises(
        DeltaLLMError, match=r"2 of 2 attention layers are not understood: .* 'scores\.0' are also read"
    ):
        rewrite_model(model, EXACT, allow_partial=True)


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
