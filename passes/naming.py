"""Names the rewritten graph uses: the operator domain, and initializers, nodes and outputs of one layer."""

from __future__ import annotations

import onnx_ir as ir

from deltallm_onnx.passes.functions.signature import INPUTS

#: Domain and version of the operators of docs/spec.md section 7.
DOMAIN = "ai.deltallm"
DOMAIN_VERSION = 1
DELTA_ATTENTION = "DeltaAttention"
#: The operator that stands for a layer in an unfused graph.
HYBRID_WINDOW_ATTENTION = "HybridWindowAttention"

#: Where DeltaAttention has what: docs/spec.md section 7.
PAST_KEY, PAST_VALUE, THRESHOLD, ROW_WEIGHT, ATTENTION_MASK = (
    INPUTS.index(name) for name in ("past_key", "past_value", "threshold", "row_weight", "attention_mask")
)
OUTPUT, PRESENT_KEY, PRESENT_VALUE, STATISTICS = 0, 1, 2, 3


def delta_nodes(model: ir.Model) -> list[ir.Node]:
    """The DeltaAttention nodes of the main graph, in order."""
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, DELTA_ATTENTION)]


def threshold_name(layer: int) -> str:
    """Initializer float32 [Hkv] or [Hkv, D] with the layer's θ."""
    return f"deltallm.threshold.{layer}"


def row_weight_name(layer: int) -> str:
    """Initializer float32 [Hkv, D] with the channel weights of the layer's row norms."""
    return f"deltallm.row_weight.{layer}"


def statistics_name(layer: int) -> str:
    """Graph output int64 [Hkv, 8] with the layer's raw counts (docs/spec.md section 6)."""
    return f"statistics.{layer}"


def delta_node_name(node: ir.Node, layer: int) -> str:
    """The name of what replaces an attention node: its own, with the operator's name at the end changed."""
    stem = (node.name or f"layer.{layer}/").removesuffix(node.op_type)
    return f"{stem}{DELTA_ATTENTION}" if stem.endswith(("/", ".", "_")) or not stem else f"{stem}/{DELTA_ATTENTION}"
