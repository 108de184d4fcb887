"""Small ONNX graphs of com.microsoft.GroupQueryAttention layers, as onnxruntime-genai's model builder writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support.attention_models import GraphBuilder

FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32

#: ONNX Runtime rotates head sizes that are multiples of 8 only.
QUERY_HEADS, KV_HEADS, HEAD_SIZE, POSITIONS = 6, 3, 16, 50


def grouped_query_model(
    *,
    layers: int = 2,
    packed: bool = False,
    rotary: bool = False,
    changed: Callable[[GraphBuilder], None] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """Layers side by side, with inputs query.N, key.N, value.N (or query.N alone) and output output.N.

    The lengths come from attention_mask [batch, total], where padding lies on the right.

    Args:
        layers: how many.
        packed: query, key and value in one tensor.
        rotary: do_rotary, with the tables as initializers.
        changed: edits the finished graph, to plant a fault.
        attributes: of every node.
    """
    g = GraphBuilder(21)
    g.input("attention_mask", INT64, ["batch", "total"])
    valid = g.node("Sub", g.node("ReduceSum", "attention_mask", [1], keepdims=0), 1)
    lengths = [g.node("Cast", valid, to=INT32), g.node("Cast", g.length("attention_mask", 1), to=INT32)]
    tables = []
    if rotary:
        angles = np.arange(POSITIONS)[:, None] * 10000.0 ** -np.linspace(0, 1, HEAD_SIZE // 2)
        tables = [g.constant(table, np.float32) for table in (np.cos(angles), np.sin(angles))]
        attributes["do_rotary"] = 1
    for layer in range(layers):
        widths = {"query": QUERY_HEADS, "key": KV_HEADS, "value": KV_HEADS}
        if packed:
            widths = {"query": QUERY_HEADS + 2 * KV_HEADS}
        names = [
            g.input(f"{name}.{layer}", FLOAT, ["batch", "sequence", heads * HEAD_SIZE])
            for name, heads in widths.items()
        ]
        names += [""] * (3 - len(names))
        for name in ("key", "value"):
            g.input(f"past_key_values.{layer}.{name}", FLOAT, ["batch", KV_HEADS, "past", HEAD_SIZE])
        pasts = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        outputs = [f"output.{layer}", f"present.{layer}.key", f"present.{layer}.value"]
        g.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [*names, *pasts, *lengths, *tables],
                outputs,
                name=f"attention.{layer}",
                domain="com.microsoft",
                num_heads=QUERY_HEADS,
                kv_num_heads=KV_HEADS,
                **attributes,
            )
        )
        g.output(f"output.{layer}", FLOAT, ["batch", "sequence", QUERY_HEADS * HEAD_SIZE])
        for name in ("key", "value"):
            g.output(f"present.{layer}.{name}", FLOAT, ["batch", KV_HEADS, "present", HEAD_SIZE])
    if changed:
        changed(g)
    model = g.build()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def grouped_query_feeds(
    model: onnx.ModelProto, lengths: list[int], new: int, *, prompt: bool, seed: int
) -> dict[str, NDArray[Any]]:
    """Inputs of one call.

    Args:
        model: from `grouped_query_model`.
        lengths: valid tokens per row after the call.
        new: tokens of the call; in a prompt rows shorter than this are padded on the right.
        prompt: nothing has come before.
        seed: of the values.
    """
    random = np.random.default_rng(seed)
    total = max(lengths)
    sizes = {"batch": len(lengths), "sequence": new, "total": total, "past": 0 if prompt else total - new}
    feeds: dict[str, NDArray[Any]] = {}
    for value in model.graph.input:
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in value.type.tensor_type.shape.dim]
        feeds[value.name] = random.standard_normal(shape).astype(np.float32)
    feeds["attention_mask"] = (np.arange(total)[None, :] < np.array(lengths)[:, None]).astype(np.int64)
    return feeds
