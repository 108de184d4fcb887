"""Prove that nobody but its own attention reads scores and probabilities, which DeltaAttention does not form."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from deltallm_onnx.passes.site import NotUnderstood

#: Where a length that is computed from scores ends: the attention of another layer, or a layer's arithmetic.
_ENDS = ("MatMul", "Softmax")


def check_score_readers(values: Iterable[ir.Value], own: Collection[ir.Node]) -> None:
    """Refuse scores that are looked into.

    Args:
        values: everything from the product of queries and keys to what the product with the values reads.
        own: the nodes of the attention, which may read them; a Shape may, if what it gives is no graph output.

    Raises:
        NotUnderstood: naming the value and its reader.
    """
    for value in values:
        if value.is_graph_output():
            raise NotUnderstood(f"its scores {value.name!r} are a graph output, and DeltaAttention does not form them")
        for node, _ in value.uses():
            if node in own or (node.op_type == "Shape" and not _is_returned(node, own)):
                continue
            raise NotUnderstood(
                f"its scores {value.name!r} are also read by {node.op_type} {node.name!r}, and DeltaAttention does not "
                "form them"
            )


def _is_returned(node: ir.Node, own: Collection[ir.Node]) -> bool:
    """Whether the graph returns what is computed from a node, other than through attention."""
    open_nodes, seen = [node], {node}
    while open_nodes:
        for output in open_nodes.pop().outputs:
            if output.is_graph_output():
                return True
            readers = {reader for reader, _ in output.uses() if reader not in own and reader.op_type not in _ENDS}
            open_nodes += readers - seen
            seen |= readers
    return False
