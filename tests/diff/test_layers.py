"""Layers are told apart by their weights, where names of weights are kept, and by their place, where they are not."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper
from support.layered_models import layered_model

from deltallm_onnx.diff import GraphDiff, diff

_ENDS = {"Gather": "Lookup", "MatMul": "Head"}


def _with_other_ends(model: onnx.ModelProto, ends: dict[str, str]) -> onnx.ModelProto:
    """Another embedding operator, another last operator, or both: nothing is the same from there."""
    for op, other in ends.items():
        node = next(n for n in reversed(model.graph.node) if n.op_type == op)
        node.op_type, node.domain = other, "test.diff"
    model.opset_import.append(helper.make_opsetid("test.diff", 1))
    return model


def _operators(result: GraphDiff, action: str) -> list[str]:
    return sorted(change.op_type for change in result.select("nodes", action))


@pytest.mark.parametrize("external", [None, "weights.data"])
@pytest.mark.parametrize("gone", [0, 1, 3])
@pytest.mark.parametrize("changed", [("Gather",), ("MatMul",), ("Gather", "MatMul")])
def test_layer_taken_out_while_the_ends_change(external: str | None, gone: int, changed: tuple[str, ...]) -> None:
    a = layered_model(4, delta=True, external=external)
    kept = [n for n in range(4) if n != gone]
    b = _with_other_ends(layered_model(kept, delta=True, external=external), {op: _ENDS[op] for op in changed})
    result = diff(a, b, ignore=["storage"])
    layer = ["Add", "MatMul", "MatMul", "RMSNormalization", "ai.deltallm::DeltaAttention"]
    assert _operators(result, "removed") == sorted([*layer, *changed])
    assert _operators(result, "added") == sorted(f"test.diff::{_ENDS[op]}" for op in changed)
    # Who read the layer's result or the embedding: the next sum and the next normalization of each, or the head.
    rewired = result.select("nodes", "rewired")
    assert {change.op_type for change in rewired} <= {"Add", "RMSNormalization", "MatMul"}
    assert len(rewired) <= 4
    # Nobody reads another weight: those are second operands.
    assert not any(detail.field.startswith("input 1") for change in rewired for detail in change.details)
    weights = {change.before.split(":")[0] for change in result.select("initializers", "removed")}
    parts = ("norm.weight", "q_proj.weight", "o_proj.weight")
    assert weights == {f"model.layers.{gone}.{part}" for part in parts} | {f"deltallm.threshold.{gone}"}


@pytest.mark.parametrize("external", [None, "weights.data"])
def test_weights_that_were_all_renamed_are_found_by_place(external: str | None) -> None:
    a, b = (layered_model(5, delta=delta, external=external) for delta in (False, True))
    for n, tensor in enumerate(b.graph.initializer):
        for node in b.graph.node:
            node.input[:] = [f"onnx::MatMul_{n}" if name == tensor.name else name for name in node.input]
        tensor.name = f"onnx::MatMul_{n}"
    result = diff(a, b)
    plain = diff(*(layered_model(5, delta=delta, external=external) for delta in (False, True)))
    for action in ("removed", "added", "rewired", "changed"):
        assert _operators(result, action) == _operators(plain, action)
    assert len(result.select("initializers", "removed")) == len(plain.select("initializers", "removed"))


def test_embedded_weights_moved_to_a_file_change_nothing_but_that() -> None:
    result = diff(layered_model(3, delta=False), layered_model(3, delta=False, external="weights.data"))
    assert {change.section for change in result.changes} == {"initializers"}
    assert {detail.field for change in result.changes for detail in change.details} == {"storage"}
