"""Layers that pass different inputs: bridged where nothing changes by it, refused by name otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support.attention_models import GraphBuilder, runner
from support.grouped_query_models import HEAD_SIZE, KV_HEADS, QUERY_HEADS, grouped_query_feeds, grouped_query_model

from deltallm_onnx import DeltaLLMError, profile
from deltallm_onnx.passes import rewrite_model
from deltallm_onnx.runtime import register

CONFIG = profile("exact").replace(window=2, sinks=1)
#: (valid tokens per row, new tokens, prompt): the lengths pass 10, where the tables of `If` change.
CALLS = [([9, 5], 9, True), ([12, 12], 1, False), ([15], 4, False)]
TOLERANCE = 1e-5

Edit = Callable[[GraphBuilder], None]


def layers(g: GraphBuilder) -> list[onnx.NodeProto]:
    return [node for node in g.nodes if node.op_type == "GroupQueryAttention"]


def without_rotary(layer: int) -> Edit:
    def edit(g: GraphBuilder) -> None:
        node = layers(g)[layer]
        del node.input[7:]
        next(a for a in node.attribute if a.name == "do_rotary").i = 0

    return edit


def unpacked(layer: int) -> Edit:
    """Three inputs in the place of the packed one."""

    def edit(g: GraphBuilder) -> None:
        node = layers(g)[layer]
        g.inputs[:] = [value for value in g.inputs if value.name != f"query.{layer}"]
        for index, (name, heads) in enumerate((("query", QUERY_HEADS), ("key", KV_HEADS), ("value", KV_HEADS))):
            shape = ["batch", "sequence", heads * HEAD_SIZE]
            node.input[index] = g.input(f"{name}.{layer}", TensorProto.FLOAT, shape)

    return edit


def tables_from_if(g: GraphBuilder) -> None:
    """LongRoPE: the tables come out of an If over the length, as constants of its branches, without a shape."""
    names = list(layers(g)[0].input[7:9])
    tables = {t.name: onnx.numpy_helper.to_array(t) for t in g.initializers if t.name in names}
    g.initializers[:] = [t for t in g.initializers if t.name not in names]

    def branch(which: str, factor: float) -> onnx.GraphProto:
        outputs = [f"{name}_{which}" for name in names]
        nodes = [
            helper.make_node(
                "Constant", [], [out], value=onnx.numpy_helper.from_array(tables[name] * np.float32(factor), out)
            )
            for name, out in zip(names, outputs, strict=True)
        ]
        return helper.make_graph(nodes, which, [], [helper.make_empty_tensor_value_info(out) for out in outputs])

    condition = helper.make_node("Greater", [layers(g)[0].input[6], "limit"], ["is_long"])
    g.initializers.append(onnx.numpy_helper.from_array(np.array(10, np.int32), "limit"))
    branches = {"then_branch": branch("long", 1.25), "else_branch": branch("short", 1.0)}
    at = g.nodes.index(layers(g)[0])
    g.nodes[at:at] = [condition, helper.make_node("If", ["is_long"], names, **branches)]


def both(*edits: Edit) -> Edit:
    def edit(g: GraphBuilder) -> None:
        for one in edits:
            one(g)

    return edit


def rewritten(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    graph = ir.serde.deserialize_model(model)
    assert rewrite_model(graph, CONFIG.replace(**options)).rewritten == len(layers_of(model))
    return ir.serde.serialize_model(graph)


def layers_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]


def with_library(model: onnx.ModelProto) -> Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    register(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


RUNNERS = {"library": with_library, "fallback": runner}


def assert_close(dense: onnx.ModelProto, delta: onnx.ModelProto, how: str) -> None:
    run_dense, run_delta = runner(dense), RUNNERS[how](delta)
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


def late_tables(g: GraphBuilder) -> None:
    """Tables and positions that are made behind the first layer."""
    node = layers(g)[1]
    for place in (7, 8, 9):
        if place < len(node.input) and node.input[place]:
            node.input[place] = g.node("Identity", node.input[place])
            g.nodes.insert(g.nodes.index(node), g.nodes.pop())


EDITS: dict[str, tuple[Edit, dict[str, Any]]] = {
    "second layer does not rotate": (without_rotary(1), {"rotary": True}),
    "first layer does not rotate": (without_rotary(0), {"rotary": True, "packed": True}),
    "interleaved": (without_rotary(1), {"rotary": True, "rotary_interleaved": 1}),
    "first layer is not packed": (unpacked(0), {"packed": True, "rotary": True}),
    "last layer is not packed": (unpacked(2), {"packed": True}),
    "tables from If": (tables_from_if, {"rotary": True, "packed": True}),
    "tables behind a layer without": (both(without_rotary(0), late_tables), {"rotary": True}),
    "tables from If, one layer without": (both(tables_from_if, without_rotary(1)), {"rotary": True}),
}


@pytest.mark.parametrize("how", RUNNERS)
@pytest.mark.parametrize("name", EDITS)
def test_equals_onnxruntime(name: str, how: str) -> None:
    edit, options = EDITS[name]
    dense = grouped_query_model(layers=3, changed=edit, **options)
    assert_close(dense, rewritten(dense), how)


@pytest.mark.parametrize("how", RUNNERS)
def test_identity_tables_change_no_bit(how: str) -> None:
    mixed = grouped_query_model(rotary=True, changed=without_rotary(1))
    plain = rewritten(grouped_query_model())
    feeds = grouped_query_feeds(mixed, [11, 7], 11, prompt=True, seed=3)
    found, expected = RUNNERS[how](rewritten(mixed))(feeds), RUNNERS[how](plain)(feeds)
    for name in ("output.1", "present.1.key"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert not np.array_equal(found["output.0"], expected["output.0"]), "the other layer rotates"


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_packed_formats_need_no_bridge(cache_format: str) -> None:
    """They have no fallback function, so every layer passes what it has."""
    dense = grouped_query_model(packed=True, rotary=True, changed=both(without_rotary(1), unpacked(1)))
    delta = rewritten(dense, cache_format=cache_format, window=8)
    first, second = (node for node in delta.graph.node if node.op_type == "DeltaAttention")
    assert [bool(name) for name in first.input[1:3]] == [False, False]
    assert [bool(name) for name in second.input[1:3]] == [True, True]
    assert all(first.input[7:9])
    assert not any(second.input[7:9])
    assert {node.op_type for node in delta.graph.node}.isdisjoint({"Concat", "ConstantOfShape"})


def other_tables(g: GraphBuilder) -> None:
    next(a for a in layers(g)[1].attribute if a.name == "rotary_interleaved").i = 1


def a_sink(g: GraphBuilder) -> None:
    node = layers(g)[1]
    node.input.extend([""] * (11 - len(node.input)) + [g.input("sink", TensorProto.FLOAT, [QUERY_HEADS])])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (other_tables, "Layers 0 and 1 differ in whether they have interleaved channels"),
        (a_sink, "Layers 0 and 1 differ in whether they have a head sink"),
    ],
)
def test_other_differences_are_refused_for_float_caches_only(edit: Edit, words: str) -> None:
    dense = grouped_query_model(rotary=True, rotary_interleaved=0, changed=edit)
    before = ir.serde.deserialize_model(dense)
    with pytest.raises(DeltaLLMError, match=words):
        rewrite_model(before, CONFIG)
    assert (
        ir.serde.serialize_model(before).SerializeToString()
        == ir.serde.serialize_model(ir.serde.deserialize_model(dense)).SerializeToString()
    ), "a refusal leaves the model as it was"
    rewritten(dense, cache_format="int8", window=8)


def narrow(layer: int) -> Edit:
    """A layer with heads of half the size."""

    def edit(g: GraphBuilder) -> None:
        for value in (*g.inputs, *g.outputs):
            for dimension in value.type.tensor_type.shape.dim if f".{layer}" in value.name else ():
                if dimension.dim_value in (HEAD_SIZE, KV_HEADS * HEAD_SIZE, QUERY_HEADS * HEAD_SIZE):
                    dimension.dim_value //= 2

    return edit


def test_tables_wider_than_a_layer_are_refused() -> None:
    dense = grouped_query_model(rotary=True, changed=both(without_rotary(0), narrow(0)))
    with pytest.raises(DeltaLLMError, match=f"Layer 0 does not rotate its {HEAD_SIZE // 2} channels and layer 1"):
        rewritten(dense)
