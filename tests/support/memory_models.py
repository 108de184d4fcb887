"""Models whose memory is known by hand."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
#: Of `tiny_decoder` where its vocabulary is to outweigh all else; no multiple of anything.
LARGE_VOCABULARY = 40009

HIDDEN, WIDE, VOCABULARY = 6, 20, 31


def gated(*, annotated: bool = True) -> onnx.ModelProto:
    """One gated MLP between an embedding and the tied head, with a cache that nothing reads.

    hidden → gate (MatMul), up (MatMul), sigmoid, silu, product → down (MatMul) → Add → head (turned embedding).
    """

    def value(name: str, element: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element, shape)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ones(shape, np.float32), name)

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w_gate"], ["gate"]),
        helper.make_node("MatMul", ["hidden", "w_up"], ["up"]),
        helper.make_node("Sigmoid", ["gate"], ["sigmoid"]),
        helper.make_node("Mul", ["gate", "sigmoid"], ["silu"]),
        helper.make_node("Mul", ["silu", "up"], ["product"], name="widest"),
        helper.make_node("MatMul", ["product", "w_down"], ["down"]),
        helper.make_node("Add", ["hidden", "down"], ["sum"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["sum", "turned"], ["logits"]),
        *(
            helper.make_node("Identity", [f"past_key_values.0.{role}"], [f"present.0.{role}"])
            for role in ("key", "value")
        ),
    ]
    inputs = [value("input_ids", INT64, "B", "S")]
    outputs = [value("logits", FLOAT, "B", "S", VOCABULARY)]
    for role in ("key", "value"):
        inputs.append(value(f"past_key_values.0.{role}", FLOAT, "B", 2, "P", 5))
        outputs.append(value(f"present.0.{role}", FLOAT, "B", 2, "P", 5))
    weights = [
        weight("table", VOCABULARY, HIDDEN),
        weight("w_gate", HIDDEN, WIDE),
        weight("w_up", HIDDEN, WIDE),
        weight("w_down", WIDE, HIDDEN),
    ]
    inner = [
        *(value(name, FLOAT, "B", "S", HIDDEN) for name in ("hidden", "down", "sum")),
        *(value(name, FLOAT, "B", "S", WIDE) for name in ("gate", "up", "sigmoid", "silu", "product")),
    ]
    graph = helper.make_graph(nodes, "gated", inputs, outputs, weights, value_info=inner if annotated else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def projection(*, accuracy_level: int, tied: bool) -> onnx.ModelProto:
    """A head of int4 weights [N, K] = [48, 64] in blocks of 32, whose codes a second head may share."""
    K, N, block = 64, 48, 32
    codes = numpy_helper.from_array(np.zeros((N, K // block, block // 2), np.uint8), "codes")
    scales = numpy_helper.from_array(np.ones((N, K // block), np.float32), "scales")
    attributes = {"K": K, "N": N, "bits": 4, "block_size": block, "accuracy_level": accuracy_level}
    names = ["logits", "again"][: 1 + tied]
    nodes = [
        helper.make_node("MatMulNBits", ["x", "codes", "scales"], [name], domain="com.microsoft", **attributes)
        for name in names
    ]
    x = helper.make_tensor_value_info("x", FLOAT, ["B", "S", K])
    outputs = [helper.make_tensor_value_info(name, FLOAT, ["B", "S", N]) for name in names]
    graph = helper.make_graph(nodes, "projection", [x], outputs, [codes, scales])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
