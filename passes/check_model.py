"""The last pass: is what came out a valid model, with every rewritten layer complete?"""

from __future__ import annotations

from typing import Literal

import onnx
import onnx_ir as ir

from deltallm_onnx.passes import naming
from deltallm_onnx.passes.functions.delta_attention import CACHE_TYPES
from deltallm_onnx.passes.onnx_checker import check_onnx


class CheckModelPass(ir.passes.PassBase):
    """Check the finished model; changes nothing.

    1. The ONNX checker: every reference is to something defined before, every operator of the standard domain exists in
       the imported opset. Weights are not loaded.
    2. As many operators of delta attention as layers that were to be rewritten.
    3. Every DeltaAttention node: caches are graph inputs and outputs of the format's type, the threshold is a float32
       initializer with one number per KV head, or one per KV head and channel with granularity "element"; so are row
       weights, with granularity "row"; the padding mask is int64.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self._layers = layers

    @property
    def in_place(self) -> Literal[True]:
        """The model that comes out is the one that came in."""
        return True

    @property
    def changes_input(self) -> Literal[False]:
        """Nothing is changed."""
        return False

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the checks."""
        return ir.passes.PassResult(model, modified=False)

    def ensures(self, model: ir.Model) -> None:
        """The checks; a violation is a defect of the passes, not of the user's model."""
        try:
            check_onnx(model)
        except onnx.checker.ValidationError as error:
            raise ir.passes.PostconditionError(f"The rewritten model is not valid ONNX: {error}") from error
        operators = (naming.DELTA_ATTENTION, naming.HYBRID_WINDOW_ATTENTION)
        count = sum(node.domain == naming.DOMAIN and node.op_type in operators for node in model.graph)
        if count != self._layers:
            raise ir.passes.PostconditionError(f"{count} operators of delta attention for {self._layers} layers.")
        for node in naming.delta_nodes(model):
            _check_node(node)


def _check_node(node: ir.Node) -> None:
    dtype = CACHE_TYPES[node.attributes["cache_format"].as_string()]
    for index in (naming.PAST_KEY, naming.PAST_VALUE):
        past = node.inputs[index]
        _require(past is not None and past.is_graph_input() and past.dtype is dtype, node, f"input {index}")
    for index in (naming.PRESENT_KEY, naming.PRESENT_VALUE):
        present = node.outputs[index]
        _require(present.is_graph_output() and present.dtype is dtype, node, f"output {index}")
    inputs = [*node.inputs, *[None] * (naming.ATTENTION_MASK + 1 - len(node.inputs))]
    by_rows = node.attributes["granularity"].as_string() == "row"
    ranks = _ranks(node, inputs[naming.THRESHOLD])
    _require(ranks == 1 or (ranks == 2 and not by_rows), node, "the threshold")
    weight = inputs[naming.ROW_WEIGHT]
    _require(weight is None or (by_rows and _ranks(node, weight) == 2), node, "the row weight")
    mask = inputs[naming.ATTENTION_MASK]
    _require(mask is None or mask.dtype is ir.DataType.INT64, node, "the attention mask")


def _ranks(node: ir.Node, value: ir.Value | None) -> int:
    """1 for float32 [Hkv], 2 for [Hkv, D], 0 for anything else."""
    tensor = None if value is None else value.const_value
    heads = node.attributes["kv_num_heads"].as_int()
    if tensor is None or tensor.dtype is not ir.DataType.FLOAT or tensor.shape[0] != heads:
        return 0
    return len(tensor.shape)


def _require(holds: bool, node: ir.Node, what: str) -> None:
    if not holds:
        raise ir.passes.PostconditionError(f"{what} of {node.name!r} is missing or of the wrong type.")
