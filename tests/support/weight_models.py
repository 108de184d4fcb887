"""A small model with weights in every form an exporter writes them, and what its quantised form stands for.

The sizes are all different, none is a multiple of a block but that of `square`, and the vocabulary is odd.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from support.attention_models import FLOAT, INT64, GraphBuilder

VOCABULARY, HIDDEN, INTERMEDIATE, SQUARE, POSITIONS, EXPERTS, EXPERT_SIZE = 83, 50, 37, 64, 19, 6, 21

#: Weights that `mixed_model` has, and in what form: [N, K].
MATRICES = {
    "embed": (VOCABULARY, HIDDEN),
    "up": (INTERMEDIATE, HIDDEN),
    "down": (SQUARE, INTERMEDIATE),
    "square": (SQUARE, SQUARE),
    "back": (HIDDEN, SQUARE),
    "twice": (HIDDEN, HIDDEN),
}
#: Weights that stay as they are, and a word of the reason.
LEFT = {"positions": "token", "router": "router", "experts": "stack", "both": "both", "scaled": "Gemm"}


def mixed_model(seed: int = 0) -> onnx.ModelProto:
    """MatMul, Gemm of both kinds, tied embeddings, and weights that cannot be quantised."""
    random = np.random.default_rng(seed)
    g = GraphBuilder(opset=18)

    def weight(name: str, *shape: int) -> str:
        values = (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        g.initializers.append(numpy_helper.from_array(values, name))
        return name

    ids = g.input("input_ids", INT64, ["batch", "sequence"])
    places = g.input("position_ids", INT64, ["batch", "sequence"])
    embedded = g.node("Gather", weight("embed", VOCABULARY, HIDDEN), ids)
    x = g.node("Add", embedded, g.node("Gather", weight("positions", POSITIONS, HIDDEN), places))
    y = g.node("Tanh", g.node("MatMul", x, weight("up", HIDDEN, INTERMEDIATE)))
    flat = g.node("Reshape", y, [-1, INTERMEDIATE])
    bias = weight("bias", SQUARE)
    y = g.node("Gemm", flat, weight("down", SQUARE, INTERMEDIATE), bias, transB=1)
    y = g.node("Gemm", y, weight("square", SQUARE, SQUARE))
    y = g.node("MatMul", y, g.node("Transpose", weight("back", HIDDEN, SQUARE), perm=[1, 0]))
    y = g.node("Add", x, g.node("Reshape", y, g.node("Shape", x)))
    twice = weight("twice", HIDDEN, HIDDEN)
    y = g.node("MatMul", g.node("Tanh", g.node("MatMul", y, twice)), twice)
    both = weight("both", HIDDEN, HIDDEN)
    y = g.node("MatMul", g.node("MatMul", y, both), g.node("Transpose", both, perm=[1, 0]))
    rows = g.node("Reshape", y, [-1, HIDDEN])
    scaled = g.node("Gemm", rows, weight("scaled", HIDDEN, HIDDEN), alpha=0.5)
    y = g.node("Add", y, g.node("Reshape", scaled, g.node("Shape", y)))
    scores = g.node("Softmax", g.node("MatMul", rows, weight("router", HIDDEN, EXPERTS)))
    g.nodes.append(onnx.helper.make_node("TopK", [scores, g.constant([1])], ["best", "expert"], name="top"))
    experts = g.node("Gather", weight("experts", EXPERTS, EXPERT_SIZE, HIDDEN), g.node("Squeeze", "expert", [1]))
    chosen = g.node("MatMul", experts, g.node("Unsqueeze", rows, [2]))
    g.output(chosen, FLOAT, ["tokens", EXPERT_SIZE, 1])
    y = g.node("Reshape", y, g.node("Shape", x))
    logits = g.node("MatMul", y, g.node("Transpose", "embed", perm=[1, 0]), output="logits")
    g.output(logits, FLOAT, ["batch", "sequence", VOCABULARY])
    model = onnx.shape_inference.infer_shapes(g.build())
    model.ir_version = 8
    return model


def mixed_feeds(seed: int = 1) -> dict[str, NDArray[Any]]:
    """Token and position ids [2, 5]."""
    random = np.random.default_rng(seed)
    return {
        "input_ids": random.integers(0, VOCABULARY, (2, 5)),
        "position_ids": random.integers(0, POSITIONS, (2, 5)),
    }


def run_standard(model: onnx.ModelProto, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The outputs of a model without operators of ours, by name."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([x.name for x in session.get_outputs()], session.run(None, feeds), strict=True))


def bits_of(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int64]:
    """Codes one by one: [..., n] bytes become [..., n·8/bits] numbers, the lower bits of a byte first."""
    if bits == 8:
        return codes.astype(np.int64)
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1).astype(np.int64)


def dequantised(model: onnx.ModelProto) -> dict[str, NDArray[np.float64]]:
    """The matrices [N, K] that the codes of a model stand for, by the names of their weights, in float64.

    Written from the operator's documentation, with nothing in common with the quantiser's own.
    """
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    matrices = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        given = {attribute.name: attribute.i for attribute in node.attribute}
        bits, block, K = given["bits"], given["block_size"], given["K"]
        codes, scales = arrays[node.input[1]], arrays[node.input[2]].astype(np.float64)
        N, blocks = scales.shape
        assert (N, blocks) == (given["N"], -(-K // block))
        zero = np.full((N, blocks), 2 ** (bits - 1))
        if len(node.input) > 3:
            zero = bits_of(arrays[node.input[3]], bits)[:, :blocks]
        values = (bits_of(codes, bits) - zero[:, :, None]) * scales[:, :, None]
        matrices[node.input[1].rsplit("_Q", 1)[0]] = values.reshape(N, -1)[:, :K]
    return matrices


def with_weights(model: onnx.ModelProto, matrices: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """A copy of a float model with some weights replaced; each matrix [N, K] is turned as the model has it."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    replaced = set()
    for tensor in changed.graph.initializer:
        name = tensor.name.removesuffix("_transposed")
        if name in matrices:
            array = matrices[name] if read_by_rows(changed, tensor.name) else matrices[name].T
            assert list(tensor.dims) == list(array.shape)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), tensor.name))
            replaced.add(name)
    assert replaced == set(matrices)
    return changed


def read_by_rows(model: onnx.ModelProto, name: str) -> bool:
    """Whether an initializer is stored as [N, K]: looked up, transposed, or read by a Gemm that does it."""
    readers = [node for node in model.graph.node if name in node.input]
    return any(
        node.op_type in {"Gather", "Transpose"}
        or any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        for node in readers
    )


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """By name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def is_float(tensor: onnx.TensorProto) -> bool:
    """Float32."""
    return bool(tensor.data_type == TensorProto.FLOAT)


def tied_model(*, columns_first: bool) -> onnx.ModelProto:
    """Only embeddings and the head tied to them: [K, N] as onnxruntime-genai's builder writes them, or [N, K]."""
    g = GraphBuilder(opset=18)
    values = np.random.default_rng(9).standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    table = numpy_helper.from_array(np.ascontiguousarray(values.T if columns_first else values), "head")
    g.initializers.append(table)
    turned = g.node("Transpose", "head", perm=[1, 0])
    ids = g.input("input_ids", INT64, ["batch", "sequence"])
    x = g.node("Gather", turned if columns_first else "head", g.node("Cast", ids, to=TensorProto.INT32))
    g.output(x, FLOAT, ["batch", "sequence", HIDDEN])
    logits = g.node("MatMul", x, "head" if columns_first else turned, output="logits")
    g.output(logits, FLOAT, ["batch", "sequence", VOCABULARY])
    return onnx.shape_inference.infer_shapes(g.build())
