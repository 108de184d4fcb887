"""From torch's raw ONNX graph to a lean, readable and reproducible one, without copying a weight."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common
from onnxscript.rewriter import onnx_fusions

from deltallm_onnx.export.graph_names import rename_everything
from deltallm_onnx.export.ternary import share_quantisation, store_scales
from deltallm_onnx.weights.transposed import TransposedWeight


def clean(model: ir.Model) -> None:
    """Fold, fuse and rename in place.

    Weights are never materialised: a linear layer's `Transpose(weight)` becomes a tensor that is transposed when it is
    written. A transpose whose weight has other readers (tied embeddings) stays a node, so that the file holds the
    matrix once. RMSNorm and rotary embedding become single opset-23 nodes where onnxscript recognises them.
    """
    transpose_weights(model)
    share_quantisation(model)
    onnxscript.optimizer.optimize_ir(model, should_fold=_may_fold)
    onnx_fusions.fuse(model)
    # Each fused rotary embedding brings its own Cos and Sin of the same angles.
    ir.passes.Sequential(
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    )(model)
    rename_everything(model)
    store_scales(model)
    common.ClearMetadataAndDocStringPass()(model)
    _strip_model_metadata(model)


def _may_fold(node: ir.Node) -> bool | None:
    """Folding a weight would copy it; None leaves the decision to the optimizer."""
    if node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].is_initializer():
        return False
    return None


def transpose_weights(model: ir.Model) -> None:
    """Replace `Transpose(w)` by a stored transpose where nothing else reads the 2-D weight w."""
    graph = model.graph
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or weight.const_value is None or not weight.is_initializer():
            continue
        permutation = node.attributes.get("perm")
        swaps = permutation is None or list(permutation.as_ints()) == [1, 0]
        if len(weight.const_value.shape) != 2 or not swaps or len(weight.uses()) != 1:
            continue
        transposed_weight = TransposedWeight(weight.const_value)
        transposed = ir.Value(
            name=f"{weight.name}_transposed",
            shape=transposed_weight.shape,
            type=weight.type,
            const_value=transposed_weight,
        )
        graph.register_initializer(transposed)
        ir.convenience.replace_all_uses_with(node.outputs[0], transposed)
        graph.remove(node, safe=True)
        del graph.initializers[str(weight.name)]


def _strip_model_metadata(model: ir.Model) -> None:
    """What `ClearMetadataAndDocStringPass` leaves: metadata of the model, its inputs and its initializers."""
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = None
    model.producer_name, model.producer_version = "deltallm-onnx", None
    model.graph.name = "main_graph"
