"""A decoder in miniature, before and after its attention is replaced: what the diff is for."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_HIDDEN, _VOCABULARY, _KV_HEADS, _HEAD_SIZE = 12, 40, 2, 5


def layered_model(layers: int | Sequence[int], *, delta: bool, external: str | None = None) -> onnx.ModelProto:
    """One attention and one normalization per layer.

    Args:
        layers: how many, or which numbers their names carry.
        delta: DeltaAttention instead of Attention with a mask built from the inputs.
        external: name of a data file that all weights are declared to lie in; None embeds them.
    """
    graph = helper.make_graph([], "decoder", [], [])
    offset = 0

    def weight(name: str, *shape: int) -> str:
        nonlocal offset
        values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)
        tensor = numpy_helper.from_array(values, name)
        if external is not None and values.size > _KV_HEADS:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", external), ("offset", offset), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            offset += values.nbytes
        graph.initializer.append(tensor)
        return name

    def node(op: str, operands: list[str], *outputs: str, domain: str = "", **attributes: object) -> str:
        graph.node.append(helper.make_node(op, operands, outputs, domain=domain, **attributes))
        return outputs[0]

    graph.input.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "S"]))
    if not delta:
        graph.initializer.append(numpy_helper.from_array(np.array([0, -1, _HIDDEN]), "val_7"))
        mask = node("Cast", [node("Shape", ["input_ids"], "shape")], "mask", to=TensorProto.BOOL)
    x = node("Gather", [weight("model.embed_tokens.weight", _VOCABULARY, _HIDDEN), "input_ids"], "h0")
    for n in range(layers) if isinstance(layers, int) else layers:
        past = f"past_key_values.{n}.key"
        for ports, name, tokens in ((graph.input, past, "P"), (graph.output, f"present.{n}.key", "T")):
            ports.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", _KV_HEADS, tokens, _HEAD_SIZE]))
        y = node("RMSNormalization", [x, weight(f"model.layers.{n}.norm.weight", _HIDDEN)], f"n{n}")
        q = node("MatMul", [y, weight(f"model.layers.{n}.q_proj.weight", _HIDDEN, _HIDDEN)], f"q{n}")
        if delta:
            threshold = weight(f"deltallm.threshold.{n}", _KV_HEADS)
            operands = [q, q, q, past, *[""] * 12, threshold]
            y = node("DeltaAttention", operands, f"a{n}", f"present.{n}.key", domain="ai.deltallm", num_heads=4)
        else:
            y = node("Attention", [q, q, q, mask, past], f"a{n}", f"present.{n}.key", scale=0.125)
            y = node("Reshape", [y, "val_7"], f"r{n}")
        y = node("MatMul", [y, weight(f"model.layers.{n}.o_proj.weight", _HIDDEN, _HIDDEN)], f"o{n}")
        x = node("Add", [x, y], f"h{n + 1}")
    node("MatMul", [x, weight("lm_head.weight", _HIDDEN, _VOCABULARY)], "logits")
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "S", _VOCABULARY]))
    opsets = [helper.make_opsetid("", 23)] + ([helper.make_opsetid("ai.deltallm", 1)] if delta else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=11)
