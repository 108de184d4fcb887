"""The check of a graph: what ONNX Runtime adds to the standard domain passes, what nobody knows does not."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from support.attention_models import GraphBuilder

from deltallm_onnx.passes.onnx_checker import check_onnx


def model(op: str, *, nested: bool = False, source: str = "x") -> ir.Model:
    """x ─▶ op ─▶ y, or the op in both branches of an If."""
    g = GraphBuilder(21)
    g.input("x", TensorProto.FLOAT, ["tokens", 7])
    g.input("is_long", TensorProto.BOOL, [])
    weight = g.constant([1.0] * 7, "float32")

    def node(output: str) -> onnx.NodeProto:
        return helper.make_node(op, [source, weight], [output], name=f"node_{output}", axis=-1)

    if nested:
        branches = {}
        for which in ("then_branch", "else_branch"):
            y = helper.make_tensor_value_info(which, TensorProto.FLOAT, ["tokens", 7])
            branches[which] = helper.make_graph([node(which)], which, [], [y])
        g.nodes.append(helper.make_node("If", ["is_long"], ["y"], name="if", **branches))
    else:
        g.nodes.append(node("y"))
    g.output("y", TensorProto.FLOAT, ["tokens", 7])
    return ir.serde.deserialize_model(g.build())


@pytest.mark.parametrize("nested", [False, True])
def test_the_norm_of_onnxruntime_passes(*, nested: bool) -> None:
    checked = model("SimplifiedLayerNormalization", nested=nested)
    before = ir.serde.serialize_model(checked).SerializeToString()
    check_onnx(checked)
    assert ir.serde.serialize_model(checked).SerializeToString() == before


@pytest.mark.parametrize("nested", [False, True])
def test_an_operator_that_nobody_knows_does_not(*, nested: bool) -> None:
    with pytest.raises(onnx.checker.ValidationError, match="SimplifiedLayerNormalisation"):
        check_onnx(model("SimplifiedLayerNormalisation", nested=nested))


def test_references_of_the_norm_are_checked() -> None:
    with pytest.raises(onnx.checker.ValidationError, match="nowhere"):
        check_onnx(model("SimplifiedLayerNormalization", source="nowhere"))
