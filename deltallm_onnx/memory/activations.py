"""What one call of a decoder keeps beside weights and caches: the largest set of tensors alive at once.

Tensors live from the node that makes them to the last
node that reads them, in the file's order; ONNX Runtime writes some results over an input, which is not counted on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx

from deltallm_onnx.memory.call_shapes import CallSizes, Shape, call_shapes
from deltallm_onnx.memory.weights import tensor_bytes

_FLOAT = onnx.TensorProto.FLOAT
#: Results that are the same bytes under another shape.
_ALIASES = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
_ATTENTION = {"Attention", "GroupQueryAttention", "MultiHeadAttention"}


@dataclasses.dataclass(frozen=True)
class CallMemory:
    """Bytes of one call.

    Attributes:
        logits: of the output, and of its float32 copy if it is float16.
        activations: of the largest set of intermediate tensors alive at once, with the node's own working memory.
        node: the node that runs while the set is largest.
        logits_shape: [B, S or 1, V].
    """

    logits: int
    activations: int
    node: str
    logits_shape: Shape


def call_memory(model: onnx.ModelProto, sizes: CallSizes) -> CallMemory:
    """Estimate one call.

    Args:
        model: a decoder with conventional names (`read_signature`); its weights are not looked at.
        sizes: of the call.
    """
    shapes, elements = call_shapes(model, sizes)
    logits_shape = shapes.get("logits", (sizes.batch, sizes.new_tokens, 1))
    logits = tensor_bytes(logits_shape, elements.get("logits", _FLOAT))
    if elements.get("logits", _FLOAT) != _FLOAT:
        logits += tensor_bytes(logits_shape, _FLOAT)
    activations, name = _largest_live_set(model.graph, shapes, elements, sizes)
    return CallMemory(logits, activations, name, logits_shape)


def _largest_live_set(
    graph: onnx.GraphProto, shapes: Mapping[str, Shape], elements: Mapping[str, int], sizes: CallSizes
) -> tuple[int, str]:
    constant = {tensor.name for tensor in graph.initializer}
    outside = {value.name for value in (*graph.input, *graph.output)}
    alias: dict[str, str] = {}
    last: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        if node.op_type in _ALIASES and len(node.input) and node.output:
            alias[node.output[0]] = alias.get(node.input[0], node.input[0])
        for name in node.input:
            last[alias.get(name, name)] = index
    alive: dict[str, int] = {}
    largest, where = 0, ""
    for index, node in enumerate(graph.node):
        if all(name in constant for name in node.input if name):  # computed once, when the model is opened
            constant.update(node.output)
            continue
        for name in node.output:
            if name and name not in outside and name not in alias:
                alive[name] = tensor_bytes(shapes.get(name, ()), elements.get(name, _FLOAT))
        total = sum(alive.values()) + _working_memory(node, shapes, elements, sizes)
        if total > largest:
            largest, where = total, node.name or node.op_type
        for name in [name for name in alive if last.get(name, -1) <= index]:
            del alive[name]
    return largest, where


def _working_memory(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], elements: Mapping[str, int], sizes: CallSizes
) -> int:
    """Bytes that a kernel takes for itself while it runs."""
    if not node.input:
        return 0
    if node.op_type in _ATTENTION:
        names = ("num_heads", "q_num_heads")
        heads = next((attribute.i for attribute in node.attribute if attribute.name in names), 0)
        query = shapes.get(node.input[0], ())
        heads = heads or (query[1] if len(query) == 4 else 1)
        scores = sizes.batch * heads * sizes.new_tokens * sizes.total_tokens * 4
        return scores + tensor_bytes(query, elements.get(node.input[0], _FLOAT))
    if node.op_type == "MatMulNBits":
        # Activations as 8-bit numbers with a scale per block.
        return tensor_bytes(shapes.get(node.input[0], ()), onnx.TensorProto.INT16)
    if node.op_type == "DeltaAttention":
        # Rotated or 8-bit copies of the new rows.
        return tensor_bytes(shapes.get(node.input[0], ()), elements.get(node.input[0], _FLOAT))
    return 0
