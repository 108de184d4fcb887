"""Derived shapes are those that ONNX Runtime computes, for any lengths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from support.attention_models import GraphBuilder, run_model
from support.mask_spellings_gathered import listed

from deltallm_onnx.passes.affine import Affine
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.site import NotUnderstood

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
INPUTS = {"past": ["batch", 2, "past", 5], "new": ["batch", 2, "sequence", 5]}
SIZES = [{"batch": 3, "past": 7, "sequence": 4}, {"batch": 2, "past": 11, "sequence": 1}]

Build = Callable[[GraphBuilder], str]


def present(g: GraphBuilder) -> str:
    return g.node("Concat", "past", "new", axis=-2)


def total(g: GraphBuilder) -> str:
    return g.node("Add", g.length("past", 2), g.length("new", 2))


FOLLOWED: dict[str, tuple[Build, tuple[str | int, ...]]] = {
    "Concat": (present, ("batch", 2, "past + sequence", 5)),
    "Concat of heads": (lambda g: g.node("Concat", "new", "new", "new", axis=1), ("batch", 6, "sequence", 5)),
    "Transpose": (lambda g: g.node("Transpose", present(g), perm=[0, 3, 1, 2]), ("batch", 5, 2, "past + sequence")),
    "Transpose by default": (lambda g: g.node("Transpose", "new"), (5, "sequence", 2, "batch")),
    "Unsqueeze": (lambda g: g.node("Unsqueeze", "new", [2, -1]), ("batch", 2, 1, "sequence", 5, 1)),
    "Squeeze": (lambda g: g.node("Squeeze", g.node("Unsqueeze", "new", [0, 3]), [0, 3]), ("batch", 2, "sequence", 5)),
    "Expand": (
        lambda g: g.node("Expand", g.node("Unsqueeze", "new", [2]), g.constant([1, 1, 3, 1, 1])),
        ("batch", 2, 3, "sequence", 5),
    ),
    "Reshape": (
        lambda g: g.node("Reshape", present(g), listed(g, g.length("past", 0), total(g), 10)),
        ("batch", "past + sequence", 10),
    ),
    "Reshape, one length inferred": (
        lambda g: g.node("Reshape", "new", listed(g, g.length("new", 0), g.length("new", 2), -1)),
        ("batch", "sequence", 10),
    ),
    "Reshape, a symbol inferred": (
        lambda g: g.node("Reshape", g.node("Transpose", "new", perm=[0, 2, 1, 3]), [0, -1, 10]),
        ("batch", "sequence", 10),
    ),
    "Gather": (lambda g: g.node("Gather", "new", [[0, 1, 1]], axis=1), ("batch", 1, 3, "sequence", 5)),
    "Gather of one": (lambda g: g.node("Gather", "new", 1, axis=-3), ("batch", "sequence", 5)),
    "MatMul": (
        lambda g: g.node("MatMul", "new", g.node("Transpose", present(g), perm=[0, 1, 3, 2])),
        ("batch", 2, "sequence", "past + sequence"),
    ),
    "Slice to an end": (
        lambda g: g.node("Slice", present(g), [0], g.node("Unsqueeze", g.length("past", 2), [0]), [2]),
        ("batch", 2, "past", 5),
    ),
    "Slice behind the end": (
        lambda g: g.node("Slice", "past", [0], g.node("Unsqueeze", total(g), [0]), [2]),
        ("batch", 2, "past", 5),
    ),
    "Range": (lambda g: g.node("Range", g.length("past", 2), total(g), 1), ("sequence",)),
    "ConstantOfShape": (lambda g: g.node("ConstantOfShape", listed(g, 3, total(g))), (3, "past + sequence")),
    "Shape": (lambda g: g.node("Shape", g.node("Unsqueeze", "new", [0])), (5,)),
    "broadcast": (
        lambda g: g.node("Add", "new", g.node("Cast", g.node("Range", 0, 5, 1), to=FLOAT)),
        ("batch", 2, "sequence", 5),
    ),
}


def graph(build: Build) -> onnx.ModelProto:
    g = GraphBuilder(18)
    for name, shape in INPUTS.items():
        g.input(name, FLOAT, shape)
    g.outputs.append(onnx.ValueInfoProto(name=build(g)))
    return g.build()


def derived(model: onnx.ModelProto) -> tuple[Affine, ...]:
    """The output's shape, of which the model says nothing."""
    return MaskInterpreter().shape(ir.serde.deserialize_model(model).graph.outputs[0])


@pytest.mark.parametrize("name", FOLLOWED)
def test_shape_is_derived(name: str) -> None:
    build, expected = FOLLOWED[name]
    assert [str(length) for length in derived(graph(build))] == [str(length) for length in expected]


@pytest.mark.parametrize("name", FOLLOWED)
def test_derived_shape_is_the_computed_one(name: str) -> None:
    model = graph(FOLLOWED[name][0])
    shape = derived(model)
    inferred = onnx.shape_inference.infer_shapes(model)
    used = {name for node in model.graph.node for name in node.input}
    for value in [value for value in inferred.graph.input if value.name not in used]:
        inferred.graph.input.remove(value)
    for sizes in SIZES:
        feeds = {
            value.name: np.zeros([sizes.get(n, n) for n in INPUTS[value.name]], np.float32)  # type: ignore[call-overload]
            for value in inferred.graph.input
        }
        (computed,) = run_model(inferred, feeds).values()
        numbers = {name: Affine(size) for name, size in sizes.items()}
        assert [length.substitute(numbers) for length in shape] == [Affine(n) for n in computed.shape]


UNKNOWN: dict[str, Build] = {
    "an operator that is not followed": lambda g: g.node("NonZero", "new"),
    "lengths that may differ": lambda g: g.node("Add", "past", "new"),
    "a part of a length": lambda g: g.node("Slice", "past", [1], g.constant([4]), [2]),
    "an end that may lie inside": lambda g: g.node("Slice", "past", [0], g.constant([4]), [2]),
    "joined axes": lambda g: g.node("Reshape", "new", [-1, 10]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_followed_is_unknown(name: str) -> None:
    with pytest.raises(NotUnderstood, match=r"the shape of .* is unknown"):
        derived(graph(UNKNOWN[name]))


def test_what_the_graph_declares_is_taken_where_nothing_is_derived() -> None:
    model = graph(UNKNOWN["joined axes"])
    output = onnx.helper.make_tensor_value_info(model.graph.output[0].name, FLOAT, ["rows", 10])
    model.graph.output[0].CopyFrom(output)
    assert derived(model) == (Affine.symbol("rows"), Affine(10))
