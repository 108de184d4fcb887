"""Small ONNX graphs of attention layers built by hand, in every layout the matcher must tell apart.

Letters: B batch, S new tokens, P past tokens, T = P + S. Sizes differ wherever two could be confused: 6 query heads,
2 KV heads, head size 5 (so that 30, 10, 6, 5, 2 and 3 layers are all different).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

QUERY_HEADS, KV_HEADS, HEAD_SIZE = 6, 2, 5

FLOAT, BOOL, INT64, INT32 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64, TensorProto.INT32


class GraphBuilder:
    """Collects nodes and constants; every method returns a value's name."""

    def __init__(self, opset: int = 23) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.typed: list[onnx.ValueInfoProto] = []
        self._count = 0

    def node(self, op: str, *inputs: Any, output: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; numbers and lists among the inputs become int64 constants."""
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self._count += 1
        output = output or f"{op.lower()}_{self._count}"
        self.nodes.append(helper.make_node(op, names, [output], name=f"n_{output}", domain=domain, **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        """Add an initializer."""
        self._count += 1
        name = f"constant_{self._count}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def input(self, name: str, dtype: int, shape: list[Any]) -> str:
        """Add a graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: list[Any]) -> str:
        """Add a graph output."""
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def length(self, value: str, axis: int) -> str:
        """The length of one axis, as a scalar."""
        return self.node("Squeeze", self.node("Shape", value, start=axis, end=axis + 1))

    def build(self) -> onnx.ModelProto:
        """The model."""
        graph = helper.make_graph(self.nodes, "attention", self.inputs, self.outputs, self.initializers)
        graph.value_info.extend(self.typed)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="hand")


Mask = Callable[[GraphBuilder], str]


def exporter_mask(window: int = 0, *, padding: bool = True) -> Mask:
    """The mask in the spelling of deltallm_onnx.export."""

    def build(g: GraphBuilder) -> str:
        seen = seen_by_position(g, window)
        if not padding:
            return seen
        return g.node("And", seen, g.node("Unsqueeze", g.node("Cast", "attention_mask", to=BOOL), [1, 2]))

    return build


def key_positions(g: GraphBuilder, axis: int = 0) -> str:
    """Columns 0 … T−1, [1, T]."""
    return g.node("Unsqueeze", g.node("Range", 0, g.length("attention_mask", 1), 1), [axis])


def query_positions(g: GraphBuilder, axis: int = 1) -> str:
    """Columns of the new tokens P … T−1, [S, 1]."""
    new, total = g.length("input_ids", 1), g.length("attention_mask", 1)
    return g.node("Unsqueeze", g.node("Add", g.node("Range", 0, new, 1), g.node("Sub", total, new)), [axis])


def seen_by_position(g: GraphBuilder, window: int = 0) -> str:
    """Causality, with a sliding window of so many keys; [S, T]."""
    keys, queries = key_positions(g), query_positions(g)
    seen = g.node("LessOrEqual", keys, queries)
    if window:
        seen = g.node("And", seen, g.node("Greater", keys, g.node("Sub", queries, window)))
    return seen


def attention_model(
    mask: Mask | None,
    *,
    layers: int = 1,
    layout: str = "heads_first",
    opset: int = 23,
    dtype: int = FLOAT,
    changed: Callable[[GraphBuilder], None] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """Layers of standard Attention side by side, with inputs query.N, key.N, value.N and output output.N.

    Args:
        mask: builds the mask, once for all layers; None for none.
        layers: how many.
        layout: "heads_first" [B,H,S,D]; "flat" [B,S,H·D]; "projected": flat outside, heads first at the node, with the
            Reshape and Transpose pairs of an exported model between; "rotary": the same with rotary embeddings of
            queries and keys, 4 of 5 channels.
        opset: of the standard domain.
        dtype: element type of query, key, value and caches.
        changed: edits the finished graph, to plant a fault.
        attributes: of every node; None removes one.
    """
    g = GraphBuilder(opset)
    g.input("input_ids", INT64, ["batch", "sequence"])
    g.input("attention_mask", INT64, ["batch", "total"])
    mask_name = mask(g) if mask else ""
    for layer in range(layers):
        _add_layer(g, layer, mask_name, layout=layout, dtype=dtype, attributes=attributes)
    if changed:
        changed(g)
    return g.build()


def _add_layer(g: GraphBuilder, layer: int, mask: str, *, layout: str, dtype: int, attributes: dict[str, Any]) -> None:
    heads = {"query": QUERY_HEADS, "key": KV_HEADS, "value": KV_HEADS}
    names = []
    for name, count in heads.items():
        full = (
            ["batch", count, "sequence", HEAD_SIZE]
            if layout == "heads_first"
            else ["batch", "sequence", count * HEAD_SIZE]
        )
        tensor = g.input(f"{name}.{layer}", dtype, full)
        if layout in ("projected", "rotary"):
            by_head = ["batch", count, "sequence", HEAD_SIZE]
            split = g.node("Reshape", tensor, [0, 0, count, HEAD_SIZE])
            tensor = g.node("Transpose", split, perm=[0, 2, 1, 3], output=f"{name}_heads.{layer}")
            g.typed.append(helper.make_tensor_value_info(tensor, dtype, by_head))
            if layout == "rotary" and name != "value":
                tensor = _rotate(g, tensor, f"{name}_rotated.{layer}")
                g.typed.append(helper.make_tensor_value_info(tensor, dtype, by_head))
        names.append(tensor)
    for name in ("key", "value"):
        g.input(f"past_key_values.{layer}.{name}", dtype, ["batch", KV_HEADS, "past", HEAD_SIZE])
    given = {"q_num_heads": QUERY_HEADS, "kv_num_heads": KV_HEADS} if layout == "flat" else {}
    given = {k: v for k, v in {**given, **attributes}.items() if v is not None}
    is_split = layout in ("projected", "rotary")
    output = f"attended.{layer}" if is_split else f"output.{layer}"
    g.nodes.append(
        helper.make_node(
            "Attention",
            [*names, mask, f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"],
            [output, f"present.{layer}.key", f"present.{layer}.value"],
            name=f"attention.{layer}",
            **given,
        )
    )
    flat = ["batch", "sequence", QUERY_HEADS * HEAD_SIZE]
    if is_split:
        back = g.node("Transpose", output, perm=[0, 2, 1, 3])
        g.node("Reshape", back, [0, 0, -1], output=f"output.{layer}")
    by_head = ["batch", QUERY_HEADS, "sequence", HEAD_SIZE]
    g.output(f"output.{layer}", dtype, by_head if layout == "heads_first" else flat)
    for name in ("key", "value"):
        g.output(f"present.{layer}.{name}", dtype, ["batch", KV_HEADS, "total", HEAD_SIZE])


def _rotate(g: GraphBuilder, tensor: str, output: str) -> str:
    """Rotary embedding of 4 channels by angles that differ by position: the tables of 40 positions are constants."""
    angles = np.arange(40)[:, None] * np.array([0.7, 0.3])
    tables = [g.constant(f(angles), np.float32) for f in (np.cos, np.sin)]
    new, total = g.length("input_ids", 1), g.length("attention_mask", 1)
    positions = g.node("Unsqueeze", g.node("Range", g.node("Sub", total, new), total, 1), [0])
    positions = g.node("Expand", positions, g.node("Shape", "input_ids"))
    rotated = ["RotaryEmbedding", tensor, *tables, positions]
    return g.node(*rotated, output=output, rotary_embedding_dim=4)


def random_feeds(
    model: onnx.ModelProto, *, batch: int = 3, new: int = 4, past: int = 7, padding: int = 2, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Inputs for `attention_model`; the first row of the batch has so many padding tokens on the left."""
    random = np.random.default_rng(seed)
    lengths = {"batch": batch, "sequence": new, "past": past, "total": past + new}
    feeds: dict[str, NDArray[Any]] = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [lengths[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if value.name == "attention_mask":
            feeds[value.name] = np.ones(shape, dtype)
            feeds[value.name][0, :padding] = 0
        elif value.name == "input_ids":
            feeds[value.name] = np.zeros(shape, dtype)
        else:
            feeds[value.name] = random.standard_normal(shape).astype(dtype)
    return feeds


Run = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def runner(model: onnx.ModelProto) -> Run:
    """Stock ONNX Runtime on one thread: feeds in, all outputs out."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))

    def run(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(outputs, session.run(outputs, {name: feeds[name] for name in inputs}), strict=True))

    return run


def run_model(model: onnx.ModelProto, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """One run of `runner`."""
    return runner(model)(feeds)
