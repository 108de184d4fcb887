"""Graphs of decomposed attention with one fault each, and the words with which the layer is declined."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper
from support.attention_models import (
    FLOAT,
    HEAD_SIZE,
    INT64,
    KV_HEADS,
    QUERY_HEADS,
    GraphBuilder,
    key_positions,
    seen_by_position,
)
from support.softmax_models import GROUP, Spelling, float_constant


def node_of(g: GraphBuilder, op: str, place: int = 0) -> onnx.NodeProto:
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
    g.output(g.node("Neg", node_of(g, "Expand").output[0]), FLOAT, ["batch", KV_HEADS, GROUP, "total", HEAD_SIZE])


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
    next(a for a in node_of(g, "Softmax").attribute if a.name == "axis").i = 2


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
    softmax = node_of(g, "Softmax")
    place = g.nodes.index(softmax)
    softmax.input[0] = g.node("Concat", softmax.input[0], column, axis=-1)
    g.nodes.insert(place, g.nodes.pop())


def _einsum(g: GraphBuilder) -> None:
    product = node_of(g, "MatMul")
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
    place = g.nodes.index(node_of(g, "Softmax"))
    g.nodes[place:place] = added
    scores = node_of(g, "Softmax").input[0]
    node_of(g, "Softmax").input[0] = g.node("Add", scores, bias)
    g.nodes.insert(g.nodes.index(node_of(g, "Softmax")), g.nodes.pop())


def before(g: GraphBuilder, reader: onnx.NodeProto, place: int, build: Callable[[str], str]) -> None:
    """Put nodes between a node and one of its inputs."""
    count = len(g.nodes)
    reader.input[place] = build(reader.input[place])
    added, g.nodes[count:] = g.nodes[count:], []
    where = g.nodes.index(reader)
    g.nodes[where:where] = added


def largest_subtracted(g: GraphBuilder, scores: str, axes: str | list[int]) -> str:
    return g.node("Sub", scores, g.node("ReduceMax", scores, axes, keepdims=1))


def _shifted_before_the_cap(g: GraphBuilder) -> None:
    before(g, node_of(g, "Div"), 0, lambda scores: largest_subtracted(g, scores, [-1]))


def _shifted_along_fed_axes(g: GraphBuilder) -> None:
    g.initializers.append(onnx.numpy_helper.from_array(np.array([-1]), "axes"))
    g.input("axes", INT64, [1])
    before(g, node_of(g, "Softmax"), 0, lambda scores: largest_subtracted(g, scores, "axes"))


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
    g.input(next(name for name in node_of(g, "Mul").input if name.startswith("constant")), FLOAT, [])


def _rounded(value: str) -> Callable[[GraphBuilder], None]:
    """Through float16 and back."""

    def change(g: GraphBuilder) -> None:
        _insert_after(g, value, "Cast", "", to=FLOAT)
        back = next(node for node in g.nodes if node.op_type == "Cast" and value in node.input)
        before(g, back, 0, lambda name: g.node("Cast", name, to=TensorProto.FLOAT16))

    return change


def _scores_output(g: GraphBuilder) -> None:
    g.output("scores.0", FLOAT, ["batch", QUERY_HEADS, "sequence", "total"])


def _scores_read(g: GraphBuilder) -> None:
    g.output(g.node("Neg", "scores.0"), FLOAT, ["batch", QUERY_HEADS, "sequence", "total"])


def _scores_shape_returned(g: GraphBuilder) -> None:
    g.output(g.node("Add", g.node("Shape", "scores.0"), 1), INT64, [4])


def _capped_scores_read(g: GraphBuilder) -> None:
    tanh = node_of(g, "Tanh").output[0]
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
    before(g, readers[0], 0, lambda _: g.node("Concat", "key_heads.0", axis=2))
    for node in readers:
        node.input[:] = [readers[0].input[0] if name == "present.0.key" else name for name in node.input]


def _lengths_nested(g: GraphBuilder) -> None:
    def nest(lengths: str) -> str:
        for _ in range(1200):
            lengths = g.node("Concat", lengths, axis=0)
        return lengths

    before(g, node_of(g, "Expand"), 1, nest)


def _batch_of_four(output: str) -> Callable[[GraphBuilder], None]:
    def change(g: GraphBuilder) -> None:
        product = next(node for node in g.nodes if output in node.output)
        before(g, product, 1, lambda name: g.node("Expand", name, [4, 1, 1, 1]))

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
