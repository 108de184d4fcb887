"""Rotate flat queries and keys instead of transposed ones."""

from __future__ import annotations

import onnx_ir as ir

from deltallm_onnx.passes import naming
from deltallm_onnx.passes.layout import source


class FoldRotaryPass(ir.passes.InPlacePass):
    """Move the rotary embedding behind the change of layout, where the layout changes before it can cancel.

    Matched (x [B,H,S,D]; the operator takes both layouts):

        x ─▶ RotaryEmbedding ─▶ Transpose ─▶ Reshape [B,S,H·D] ─▶ DeltaAttention

    Replacement:

        x ─▶ Transpose ─▶ Reshape [B,S,H·D] ─▶ RotaryEmbedding(num_heads = H) ─▶ DeltaAttention

    1. Something else reads the rotated tensor too: cannot move, retain.
    2. The embedding's input is not known to be [B,H,S,D]: retain.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move the embeddings of queries and keys."""
        moved = False
        for delta in naming.delta_nodes(model):
            for index, heads in ((0, "num_heads"), (1, "kv_num_heads")):
                moved = _move(model.graph, delta, index, delta.attributes[heads].as_int()) or moved
        return ir.passes.PassResult(model, modified=moved)


def _move(graph: ir.Graph, delta: ir.Node, index: int, heads: int) -> bool:
    flat = delta.inputs[index]
    swapped = source(flat, "Reshape")
    rotated = source(swapped, "Transpose")
    if flat is None or swapped is None or rotated is None:
        return False
    swap, rotary = swapped.producer(), rotated.producer()
    if swap is None or rotary is None or not _takes_heads_first(rotary, heads):
        return False
    if any(len(value.uses()) > 1 or value.is_graph_output() for value in (flat, swapped, rotated)):
        return False
    swap.replace_input_with(0, rotary.inputs[0])
    kept = [attribute for name, attribute in rotary.attributes.items() if name != "num_heads"]
    inputs, attributes = [flat, *rotary.inputs[1:]], [*kept, ir.AttrInt64("num_heads", heads)]
    moved = ir.Node("", "RotaryEmbedding", inputs, attributes, name=rotary.name)
    output = moved.outputs[0]
    output.name, output.type, output.shape = rotated.name, flat.type, flat.shape
    moved.metadata_props.update(rotary.metadata_props)
    graph.insert_before(delta, moved)
    delta.replace_input_with(index, output)
    rotated.name = None
    graph.remove(rotary, safe=True)
    return True


def _takes_heads_first(node: ir.Node, heads: int) -> bool:
    """Whether a node is a RotaryEmbedding of a tensor [B,H,S,D]."""
    if node.op_type != "RotaryEmbedding" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
        return False
    shape = node.inputs[0].shape
    return shape is not None and len(shape) == 4 and shape[1] == heads
