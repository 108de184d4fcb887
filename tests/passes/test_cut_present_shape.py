"""Lengths taken from caches come from the graph's inputs instead, and are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support.attention_models import GraphBuilder, run_model
from support.mask_spellings_gathered import expanded, listed

from deltallm_onnx.passes.cut_present_shape import CutPresentShapePass
from deltallm_onnx.passes.site import AttentionSite, MaskMeaning

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
TABLE = 40


def model_of_lengths(*, named: bool = True) -> onnx.ModelProto:
    """A layer's caches, joined outside of the attention, and what asks them for their lengths.

    Args:
        named: the new tokens' dimension is that of input_ids; otherwise it has a name of its own.
    """
    g = GraphBuilder(18)
    g.input("input_ids", INT64, ["batch", "sequence"])
    g.input("attention_mask", INT64, ["batch", "total"])
    new = "sequence" if named else "tokens"
    for what in ("key", "value"):
        g.input(f"past.{what}", FLOAT, ["batch", 2, "past", 5])
        g.input(f"new.{what}", FLOAT, ["batch", 2, new, 5])
    g.input("query", FLOAT, ["batch", 6, new, 5])
    for what in ("key", "value"):
        g.node("Concat", f"past.{what}", f"new.{what}", axis=2, output=f"present.{what}")
        g.output(f"present.{what}", FLOAT, ["batch", 2, "total", 5])
    past = g.node("Gather", g.node("Shape", "past.key"), 2, axis=0)
    tokens = g.node("Gather", g.node("Shape", "new.key"), 2, axis=0)
    g.node("Range", past, g.node("Add", past, tokens), 1, output="positions")
    g.output("positions", INT64, ["tokens_"])
    sizes = [g.node("Gather", g.node("Shape", "present.key"), axis, axis=0) for axis in range(4)]
    wide = expanded(g, g.node("Unsqueeze", "present.key", [2]), listed(g, sizes[0], 2, 3, sizes[2], sizes[3]))
    heads = g.node("Reshape", wide, listed(g, sizes[0], 6, sizes[2], sizes[3]))
    g.node("Identity", g.node("Shape", heads), output="lengths")
    g.output("lengths", INT64, [4])
    first = g.node(
        "Unsqueeze", g.node("Sub", TABLE, g.node("Gather", g.node("Shape", "present.value"), 2, axis=0)), [0]
    )
    table = g.constant(np.arange(6 * TABLE).reshape(6, 1, TABLE), np.float32)
    g.node("Slice", table, first, [2**63 - 1], [2], [1], output="bias")
    g.output("bias", FLOAT, [6, 1, "keys"])
    g.node("Identity", "query", output="output")
    g.output("output", FLOAT, ["batch", 6, new, 5])
    return g.build()


def cut(model: onnx.ModelProto, *, padding: bool = True) -> ir.Model:
    """The model after the pass, its one layer described by hand."""
    loaded = ir.serde.deserialize_model(model)
    values = {value.name: value for value in loaded.graph.inputs}
    values |= {value.name: value for node in loaded.graph for value in node.outputs}
    producer = values["output"].producer()
    assert producer is not None
    site = AttentionSite(
        layer=0,
        node=producer,
        query=values["query"],
        key=values["new.key"],
        value=values["new.value"],
        past_key=values["past.key"],
        past_value=values["past.value"],
        present_key=values["present.key"],
        present_value=values["present.value"],
        output=values["output"],
        heads_first=True,
        num_heads=6,
        kv_num_heads=2,
        head_size=5,
        scale=1.0,
        softcap=0.0,
        mask=MaskMeaning(causal=True, sliding_window=None, padding=values["attention_mask"] if padding else None),
    )
    assert CutPresentShapePass([site])(loaded).modified
    return loaded


def feeds(model: onnx.ModelProto, *, batch: int, new: int, past: int) -> dict[str, Any]:
    lengths = {"batch": batch, "sequence": new, "tokens": new, "past": past, "total": past + new}
    result = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [lengths[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        result[value.name] = np.zeros(shape, np.int64 if tensor.elem_type == INT64 else np.float32)
    return result


def behind(value: ir.Value) -> set[str]:
    """The names of all values that a value is computed from."""
    names: set[str] = set()
    open_values = [value]
    while open_values:
        current = open_values.pop()
        node = current.producer()
        inputs = [] if node is None else [x for x in node.inputs if x is not None and x.name not in names]
        names |= {x.name or "" for x in inputs}
        open_values += inputs
    return names


def value_of(model: ir.Model, name: str) -> ir.Value:
    return next(value for value in model.graph.outputs if value.name == name)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("padding", [True, False])
def test_lengths_stay_the_same(*, named: bool, padding: bool) -> None:
    source = model_of_lengths(named=named)
    rewritten = ir.serde.serialize_model(cut(source, padding=padding))
    onnx.checker.check_model(rewritten, full_check=True)
    for batch, new, past in ((3, 4, 7), (2, 1, 9), (1, 8, 0)):
        inputs = feeds(source, batch=batch, new=new, past=past)
        expected, got = run_model(source, inputs), run_model(rewritten, inputs)
        for name in ("positions", "lengths", "bias"):
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("padding", [True, False])
def test_no_length_needs_a_present(*, named: bool, padding: bool) -> None:
    """Else the attention that makes it would have to run before its own bias is known."""
    model = cut(model_of_lengths(named=named), padding=padding)
    for name in ("positions", "lengths", "bias"):
        assert not behind(value_of(model, name)) & {"present.key", "present.value"}


def test_no_length_needs_a_cache_where_the_inputs_tell() -> None:
    """The rows of a packed cache are not its tokens."""
    model = cut(model_of_lengths())
    for name in ("positions", "lengths", "bias"):
        caches = {"present.key", "present.value", "past.key", "past.value"}
        assert not behind(value_of(model, name)) & caches, name


def test_a_length_that_is_not_understood_stays() -> None:
    """Shape of something made of the cache and of an unknown length."""
    source = model_of_lengths()
    g = GraphBuilder(18)
    g.node("Expand", "present.key", "target", output="spread")
    g.node("Shape", "spread", output="spread_shape")
    source.graph.node.extend(g.nodes)
    source.graph.input.append(onnx.helper.make_tensor_value_info("target", INT64, [4]))
    source.graph.output.append(onnx.helper.make_tensor_value_info("spread_shape", INT64, [4]))
    model = cut(source)
    assert "present.key" in behind(value_of(model, "spread_shape"))
