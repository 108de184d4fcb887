"""The layout changes between [B,S,H·D], [B,S,H,D] and [B,H,S,D], as graphs write them."""

from __future__ import annotations

import onnx_ir as ir

#: Swaps heads and tokens: [B,H,S,D] ↔ [B,S,H,D].
SWAP_HEADS_AND_TOKENS = [0, 2, 1, 3]


def is_swap(node: ir.Node) -> bool:
    """Whether a node swaps heads and tokens."""
    if node.op_type != "Transpose" or node.domain not in ("", "ai.onnx") or "perm" not in node.attributes:
        return False
    return list(node.attributes["perm"].as_ints()) == SWAP_HEADS_AND_TOKENS


def is_layout_change(node: ir.Node, op: str) -> bool:
    """Whether a node is a Reshape, or a Transpose that swaps heads and tokens."""
    return is_swap(node) if op == "Transpose" else node.op_type == op and node.domain in ("", "ai.onnx")


def source(value: ir.Value | None, op: str) -> ir.Value | None:
    """The input of the layout change that produces a value; None if something else does."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and is_layout_change(node, op) else None


def readers(value: ir.Value, op: str) -> list[ir.Value]:
    """The outputs of the layout changes that read a value."""
    return [node.outputs[0] for node, index in value.uses() if index == 0 and is_layout_change(node, op)]


def same_tensor(a: ir.Value, b: ir.Value) -> bool:
    """Whether two [.., .., width] tensors with the same elements in the same order have the same shape.

    Equal widths and one equal leading length leave the other no choice.
    """
    if a.shape is None or b.shape is None or len(a.shape) != 3 or len(b.shape) != 3:
        return False
    width = isinstance(a.shape[2], int) and a.shape[2] == b.shape[2]
    return width and any(a.shape[i] == b.shape[i] and a.shape[i] != ir.SymbolicDim(None) for i in (0, 1))
