"""Spell `DeltaAttention` out as its two smaller operators, for reading and for other back ends."""

from __future__ import annotations

import onnx_ir as ir

from deltallm_onnx.passes import naming
from deltallm_onnx.passes.functions import Signature, unfused_functions, unfused_subgraph


class UnfusePass(ir.passes.InPlacePass):
    """Replace every DeltaAttention node by its body, and attach the functions of the smaller operators.

    Matched:

        query, key, value, past_key, past_value, threshold, attention_mask ─▶ DeltaAttention ─▶ output, present_*

    Replacement (standard operators for lengths, head layout and the cache append left out):

        past_key, key ─▶ append ─▶ DeltaThreshold ─▶ present_key (k̂)
                            │                            │
                            └─ k ──▶ HybridWindowAttention ◀─ k̂      query, present_value ─▶ (the same) ─▶ output
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the nodes one by one."""
        nodes = naming.delta_nodes(model)
        signature = Signature.of(nodes)
        for node in nodes:
            inserted, outputs = unfused_subgraph(node, signature)
            model.graph.insert_before(node, inserted)
            for old, new in zip(node.outputs, outputs, strict=True):
                new.type, new.shape = old.type, old.shape
                ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
                new.name, old.name = old.name, None
            model.graph.remove(node, safe=True)
        for function in unfused_functions(signature, opset_version=model.opset_imports[""]):
            model.functions[function.identifier()] = function
        return ir.passes.PassResult(model, modified=bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        """None is left."""
        left = naming.delta_nodes(model)
        if left:
            raise ir.passes.PostconditionError(f"{len(left)} DeltaAttention nodes are left.")
