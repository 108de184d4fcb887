"""What an axis of length 1 or too many would do to the scores: proven not to happen, or declined."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.attention_models import (
    FLOAT,
    INT64,
    QUERY_HEADS,
    GraphBuilder,
    attention_model,
    exporter_mask,
    key_positions,
    query_positions,
    random_feeds,
    runner,
)
from support.softmax_models import Spelling, float_constant, softmax_model

from deltallm_onnx import DeltaLLMError, profile
from deltallm_onnx.passes import rewrite_model

EXACT = profile("exact").replace(window=2, sinks=1)
#: One softmax over at most 9 float32 scores of magnitude below 30, computed in another order.
TOLERANCE = 1e-5
SIZES = [(4, 0), (1, 6), (3, 5)]

Edit = Callable[[GraphBuilder], None]


def rewritten(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    graph = ir.serde.deserialize_model(model)
    rewrite_model(graph, EXACT.replace(**options))
    return ir.serde.serialize_model(graph)


def assert_equals_dense(dense: onnx.ModelProto, tolerance: float = TOLERANCE) -> None:
    run_dense, run_delta = runner(dense), runner(rewritten(dense))
    for new, past in SIZES:
        feeds = random_feeds(dense, new=new, past=past, padding=min(2, past), seed=7 * new + past)
        for name, array in run_dense(feeds).items():
            np.testing.assert_allclose(run_delta(feeds)[name], array, atol=tolerance, rtol=0, err_msg=name)


def placed(g: GraphBuilder, at: int, build: Callable[[], str]) -> str:
    """Build nodes, at a place in the graph instead of its end."""
    count = len(g.nodes)
    value = build()
    added, g.nodes[count:] = g.nodes[count:], []
    g.nodes[at:at] = added
    return value


def added_to_scores(build: Callable[[GraphBuilder], str]) -> Edit:
    """One more tensor is added to the scores before the mask."""

    def edit(g: GraphBuilder) -> None:
        add = [node for node in g.nodes if node.op_type == "Add"][-1]
        scores = add.input[0]
        add.input[0] = placed(g, g.nodes.index(add), lambda: g.node("Add", scores, build(g)))

    return edit


def slopes(shape: tuple[int, ...]) -> Callable[[GraphBuilder], str]:
    """Slopes of some shape times the key's position."""

    def build(g: GraphBuilder) -> str:
        positions = g.node("Cast", key_positions(g), to=FLOAT)
        return g.node("Mul", positions, g.constant(np.arange(math.prod(shape)).reshape(shape) * 0.1, np.float32))

    return build


def expanded_mask(shape: list[int]) -> Callable[[GraphBuilder], str]:
    return lambda g: g.node("Expand", exporter_mask()(g), shape)


def past_and_total(g: GraphBuilder) -> tuple[str, str]:
    past = g.node("Shape", "past_key_values.0.key", start=2, end=3)
    return past, g.node("Add", past, g.node("Shape", "input_ids", start=1, end=2))


def triangle(rows: int, columns: int) -> Callable[[GraphBuilder], str]:
    """A stored table, cut to the queries' rows and the keys' columns."""

    def build(g: GraphBuilder) -> str:
        table = g.constant(np.tril(np.ones((rows, columns), np.bool_)), np.bool_)
        past, total = past_and_total(g)
        return g.node("Slice", g.node("Slice", table, past, total, [0]), [0], total, [1])

    return build


def counted(g: GraphBuilder) -> str:
    """Positions of queries from a list of eight."""
    past, total = past_and_total(g)
    queries = g.node("Slice", g.node("Range", 0, 8, 1), past, total, [0])
    return g.node("LessOrEqual", key_positions(g), g.node("Unsqueeze", queries, [1]))


def rows_of_another_input(g: GraphBuilder) -> str:
    """As many rows as an input that need not be as long as the new tokens."""
    g.input("cache_position", INT64, ["positions"])
    total, count = g.length("attention_mask", 1), g.length("cache_position", 0)
    queries = g.node("Range", g.node("Sub", total, count), total, 1)
    return g.node("LessOrEqual", key_positions(g), g.node("Unsqueeze", queries, [1]))


def one_row_of_padding(g: GraphBuilder) -> None:
    dimension = next(v for v in g.inputs if v.name == "attention_mask").type.tensor_type.shape.dim[0]
    dimension.dim_value = 1


DECLINED = {
    "mask of three rows": (Spelling(seen=expanded_mask([3, 1, 1, 1])), "has 3 entries along axis -4"),
    "mask of five axes": (Spelling(seen=expanded_mask([1, 1, 1, 1, 1])), "has 5 axes and its scores have 4"),
    "bias of three rows": (Spelling(changed=added_to_scores(slopes((3, 1, 1, 1)))), "has 3 entries along axis -4"),
    "bias of five axes": (Spelling(changed=added_to_scores(slopes((2, 1, 1, 1, 1)))), "has 5 axes"),
    "table with fewer rows": (Spelling(seen=triangle(8, 16)), "its mask has min(8, "),
    "list of eight positions": (Spelling(seen=counted), "its mask has min(8, "),
    "rows of another input": (Spelling(seen=rows_of_another_input), "its mask has positions positions along axis -2"),
    "one row of padding": (Spelling(changed=one_row_of_padding), "its padding mask 'attention_mask' has 1 rows"),
    "-65504 in float32": (Spelling(hidden=-65504.0), "adds 0 and -65504 to the scores"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_declined(name: str) -> None:
    spelling, words = DECLINED[name]
    with pytest.raises(DeltaLLMError) as refusal:
        rewritten(softmax_model(spelling))
    assert words in str(refusal.value)


def keys_alone(g: GraphBuilder) -> str:
    """The same for all keys of a query, which a softmax does not notice."""
    return g.node("Cast", query_positions(g), to=FLOAT)


def length_of_joined_keys(g: GraphBuilder) -> None:
    """The bias asks the keys [B·H, D, T] how many they are, whose first axis has no length that is known."""
    product = next(node for node in g.nodes if "scores.0" in node.output)
    keys = product.input[1]

    def build(g: GraphBuilder) -> str:
        total = g.node("Cast", g.node("Gather", g.node("Shape", keys), 2, axis=0), to=FLOAT)
        positions = g.node("Range", float_constant(g, 0.0), total, float_constant(g, 1.0))
        return g.node("Mul", positions, g.constant(np.arange(6).reshape(6, 1, 1) * 0.1, np.float32))

    added_to_scores(build)(g)


def joined_bias_of_one_row(g: GraphBuilder) -> None:
    part = next(node for node in g.nodes if node.op_type == "Reshape" and "scores.0" in node.input)
    part.input[0] = placed(g, g.nodes.index(part), lambda: g.node("Add", "scores.0", slopes((1, 1, 1))(g)))


def cast_in_branches(g: GraphBuilder) -> None:
    """The padding mask is of truth values, and an If before the layer casts it."""
    padding_of_truth_values(g)
    g.initializers.append(numpy_helper.from_array(np.array(True), "condition"))

    def branch(name: str) -> onnx.GraphProto:
        cast = helper.make_node("Cast", ["attention_mask"], [name], to=INT64)
        return helper.make_graph([cast], name, [], [helper.make_tensor_value_info(name, INT64, ["batch", "total"])])

    node = helper.make_node("If", ["condition"], ["cast"], then_branch=branch("then"), else_branch=branch("else"))
    g.nodes.insert(0, node)
    g.output("cast", INT64, ["batch", "total"])


def cast_at_the_end(g: GraphBuilder) -> None:
    padding_of_truth_values(g)
    g.node("Cast", "attention_mask", to=INT64, output="cast")
    g.output("cast", INT64, ["batch", "total"])


def padding_of_truth_values(g: GraphBuilder) -> None:
    next(v for v in g.inputs if v.name == "attention_mask").type.tensor_type.elem_type = TensorProto.BOOL


def shape_as_output(g: GraphBuilder) -> None:
    g.node("Shape", "present.0.key", output="lengths")
    g.output("lengths", INT64, [4])


UNDERSTOOD = {
    "mask of all heads": Spelling(seen=expanded_mask([1, QUERY_HEADS, 1, 1])),
    "square table": Spelling(seen=triangle(16, 16)),
    "table with more rows": Spelling(seen=triangle(17, 13)),
    "bias along queries": Spelling(changed=added_to_scores(keys_alone)),
    "bias of heads alone": Spelling(
        changed=added_to_scores(lambda g: g.constant(np.arange(6).reshape(1, 6, 1, 1), np.float32))
    ),
    "bias of one row for joined heads": Spelling(joined=True, scale="query", changed=joined_bias_of_one_row),
    "padding cast in branches": Spelling(changed=cast_in_branches),
    "padding cast at the end": Spelling(changed=cast_at_the_end),
    "shape as output": Spelling(changed=shape_as_output),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_equals_dense(name: str) -> None:
    assert_equals_dense(softmax_model(UNDERSTOOD[name]))


def test_a_cast_behind_the_operator_is_not_taken() -> None:
    assert_equals_dense(attention_model(exporter_mask(), changed=cast_at_the_end))


def test_a_bias_that_waits_for_its_own_present_is_refused() -> None:
    with pytest.raises(DeltaLLMError, match="computed from the length of its own present"):
        rewritten(softmax_model(Spelling(joined=True, changed=length_of_joined_keys)))


def test_an_own_cast_serves_all_layers() -> None:
    delta = rewritten(softmax_model(dataclasses.replace(UNDERSTOOD["padding cast at the end"], layers=2)))
    masks = {node.input[-1] for node in delta.graph.node if node.op_type == "DeltaAttention"}
    assert masks == {"deltallm.int64.attention_mask/Cast_output"}


def test_oldest_opset_has_no_shape_from_a_start() -> None:
    """int8 needs no newer opset, and `Shape` has no attributes before 15."""
    spelling = Spelling(opset=13, bias="head", mask="where", seen=exporter_mask())
    model = softmax_model(dataclasses.replace(spelling, opset=18))
    model.opset_import[0].version = 18
    delta = rewritten(model, cache_format="int8", window=8)
    made = [n for n in delta.graph.node if n.op_type == "Shape" and n.name.startswith(("deltallm", "n_probabilities"))]
    assert made
    assert not any(node.attribute for node in made)
