"""Drop the layout changes around `DeltaAttention` that undo each other."""

from __future__ import annotations

import onnx_ir as ir

from deltallm_onnx.passes import naming
from deltallm_onnx.passes.layout import readers, same_tensor, source


class FoldLayoutPass(ir.passes.InPlacePass):
    """Cancel head-splitting against head-joining, on both sides of every DeltaAttention.

    Matched, input side (x [B,S,H·D]; DeltaAttention may be a RotaryEmbedding of flat tensors before it):

        x ─▶ Reshape [B,S,H,D] ─▶ Transpose ─▶ Transpose ─▶ Reshape [B,S,H·D] ─▶ DeltaAttention

    Replacement, the first of these that is proven by the shapes:
    1. x is [B,S,H·D] itself: x ─▶ DeltaAttention.
    2. Otherwise only the transpositions cancel: [B,S,H,D] ─▶ Reshape [B,S,H·D] ─▶ DeltaAttention.

    Matched, output side: the mirror image, DeltaAttention ─▶ Reshape ─▶ Transpose ─▶ Transpose ─▶ Reshape ─▶ y, for
    each reader of the middle; other readers keep their view. A graph output in the middle is retained.
    Dead nodes are left for the removal of unused nodes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold around every DeltaAttention node."""
        folded = 0
        for node in naming.delta_nodes(model):
            for index, tensor in enumerate(node.inputs[:3]):
                rotary = None if tensor is None else tensor.producer()
                is_rotary = rotary is not None and rotary.op_type == "RotaryEmbedding"
                folded += _fold_input(rotary, 0) if rotary is not None and is_rotary else _fold_input(node, index)
            folded += _fold_output(node)
        return ir.passes.PassResult(model, modified=bool(folded))


def _fold_input(node: ir.Node, index: int) -> bool:
    joined = node.inputs[index]
    swapped = source(joined, "Reshape")
    by_token = source(source(swapped, "Transpose"), "Transpose")
    if joined is None or swapped is None or by_token is None:
        return False
    original = source(by_token, "Reshape")
    if original is not None and same_tensor(original, joined):
        node.replace_input_with(index, original)
    else:
        joined_by = joined.producer()
        if joined_by is None:
            return False
        joined_by.replace_input_with(0, by_token)
    return True


def _fold_output(delta: ir.Node) -> bool:
    output = delta.outputs[naming.OUTPUT]
    folded = False
    for split in readers(output, "Reshape"):
        for by_head in readers(split, "Transpose"):
            for by_token in readers(by_head, "Transpose"):
                if by_token.is_graph_output():
                    continue
                for joined in readers(by_token, "Reshape"):
                    if same_tensor(joined, output) and not joined.is_graph_output():
                        ir.convenience.replace_all_uses_with(joined, output)
                ir.convenience.replace_all_uses_with(by_token, split)
                folded = True
    return folded
