"""Llama decoders with random int4 weights, written as ONNX without a trained model: only their attention differs.

The graph is what onnxruntime-genai's model builder writes for a CPU: packed QKV, rotary inside the attention operator,
MatMulNBits with int8 activations, a float16 embedding. All variants share one file of weights.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.contenders import Contender, cache_layout
from bench.geometry import Geometry

WEIGHTS_FILE = "weights.data"
#: Weights of a MatMulNBits block, which share a scale.
_BLOCK = 32
#: A multiple of every page size in use: ONNX Runtime maps weights that begin on one.
_ALIGNMENT = 1 << 16
_SEED = 20250730
_FLOAT, _HALF, _BYTE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a Llama decoder with tied embeddings, as in its config.json.

    Attributes:
        geometry: of the attention.
        hidden_size: channels of the residual stream.
        layers: how many.
        intermediate_size: channels of the MLP.
        vocabulary: tokens.
        positions: rows of the rotary tables; no longer context can be run.
        rope_theta: base of the rotary angles.
    """

    geometry: Geometry
    hidden_size: int
    layers: int
    intermediate_size: int
    vocabulary: int
    positions: int
    rope_theta: float = 500000.0


LLAMA_3_2_1B = LlamaConfig(
    geometry=Geometry("Llama-3.2-1B", 32, 8, 64),
    hidden_size=2048,
    layers=16,
    intermediate_size=8192,
    vocabulary=128256,
    positions=33280,
)
#: Llama's shape at a size that is written and run in a second.
TOY = LlamaConfig(
    geometry=Geometry("toy", 6, 2, 32),
    hidden_size=160,
    layers=3,
    intermediate_size=448,
    vocabulary=517,
    positions=1024,
)


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor of the weights file: its name, type, shape and how it is made."""

    name: str
    element: int
    shape: tuple[int, ...]
    scale: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape)) * helper.tensor_dtype_to_np_dtype(self.element).itemsize

    def make(self, random: np.random.Generator) -> npt.NDArray[Any]:
        """Codes are uniform, scales are constant, the rest is normal with standard deviation `scale`."""
        if self.element == _BYTE:
            return random.integers(0, 256, self.shape, dtype=np.uint8)
        if self.element == _FLOAT:
            return np.full(self.shape, self.scale, np.float32)
        return (random.standard_normal(self.shape, dtype=np.float32) * self.scale).astype(np.float16)


def projections(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Inputs K and outputs N of the matrices of one layer."""
    geometry, hidden = config.geometry, config.hidden_size
    attended = geometry.heads * geometry.head_size
    return {
        "qkv": (hidden, attended + 2 * geometry.kv_heads * geometry.head_size),
        "o": (attended, hidden),
        "gate": (hidden, config.intermediate_size),
        "up": (hidden, config.intermediate_size),
        "down": (config.intermediate_size, hidden),
    }


def weights(config: LlamaConfig) -> list[Weight]:
    """Every tensor of the weights file, in its order."""
    found = [Weight("embedding", _HALF, (config.vocabulary, config.hidden_size), 1.0)]
    for layer in range(config.layers):
        for name, (inputs, outputs) in projections(config).items():
            found += _quantised(f"{layer}.{name}", inputs, outputs)
    return found + _quantised("head", config.hidden_size, config.vocabulary)


def _quantised(name: str, inputs: int, outputs: int) -> list[Weight]:
    blocks = -(-inputs // _BLOCK)
    # Codes are uniform in 0 … 15 around 8: their standard deviation is 4.6, the product's is to be that of its input.
    return [
        Weight(f"{name}.codes", _BYTE, (outputs, blocks, _BLOCK // 2)),
        Weight(f"{name}.scales", _FLOAT, (outputs, blocks), float(1 / (4.6 * np.sqrt(inputs)))),
    ]


def write_weights(config: LlamaConfig, folder: Path) -> Path:
    """Write the weights file, or keep the one of the right size that is there.

    Args:
        config: of the decoder.
        folder: where the models will lie; made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS_FILE
    size = sum(room for _, room in _placed(config))
    if path.is_file() and path.stat().st_size == size:
        return path
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    random = np.random.default_rng(_SEED)
    try:
        with temporary.open("wb") as file:
            for weight, room in _placed(config):
                _write(file, weight.make(random), room)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _write(file: BinaryIO, array: npt.NDArray[Any], room: int) -> None:
    file.write(array.tobytes())
    file.write(bytes(room - array.nbytes))


def _placed(config: LlamaConfig) -> Iterator[tuple[Weight, int]]:
    """Every weight and the bytes from its begin to the next one's."""
    for weight in weights(config):
        yield weight, -(-weight.nbytes // _ALIGNMENT) * _ALIGNMENT


def write_model(config: LlamaConfig, attention: Contender, folder: Path, *, accuracy_level: int = 4) -> Path:
    """Write the .onnx file of one variant beside the weights; returns its path.

    Inputs: input_ids and attention_mask int64, past_key_values.N.key/value. Outputs: logits float32 [1, 1, V] of the
    last token, present.N.key/value.

    Args:
        config: of the decoder.
        attention: of all layers.
        folder: with the weights.
        accuracy_level: of MatMulNBits: 4 rounds activations to 8 bits, 1 computes in float32.
    """
    path = folder / f"{attention.name.replace(' ', '-').replace(',', '')}.onnx"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        onnx.save(_Decoder(config, attention, accuracy_level).model(), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class _Decoder:
    """Collects the nodes of one variant."""

    def __init__(self, config: LlamaConfig, attention: Contender, accuracy_level: int) -> None:
        self._config = config
        self._attention = attention
        self._accuracy_level = accuracy_level
        self._nodes: list[onnx.NodeProto] = []
        self._initializers = [_external(weight, begin) for weight, begin in _offsets(config)]
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._inner: list[onnx.ValueInfoProto] = []

    def model(self) -> onnx.ModelProto:
        """The whole graph."""
        self._tensor(self._inputs, "input_ids", TensorProto.INT64, 1, "S")
        self._tensor(self._inputs, "attention_mask", TensorProto.INT64, 1, "T")
        self._lengths()
        self._rotary_tables()
        self._constant("ones", np.ones(self._config.hidden_size, np.float32))
        self._node("Gather", ["embedding", "input_ids"], ["embedded_half"])
        self._node("Cast", ["embedded_half"], ["residual.0"], to=_FLOAT)
        norm = {"axis": -1, "epsilon": 1e-5, "stash_type": 1}
        self._node("SimplifiedLayerNormalization", ["residual.0", "ones"], ["normed.0"], **norm)
        for layer in range(self._config.layers):
            self._layer(layer)
        self._constant("last", np.array([-1], np.int64))
        self._node("Gather", [f"normed.{self._config.layers}", "last"], ["last_hidden"], axis=1)
        self._matmul("last_hidden", "head", (self._config.hidden_size, self._config.vocabulary), "logits")
        self._tensor(self._outputs, "logits", _FLOAT, 1, 1, self._config.vocabulary)
        # The logits stand first among the outputs, as exporters write them.
        outputs = [self._outputs[-1], *self._outputs[:-1]]
        graph = helper.make_graph(
            self._nodes, "llama", self._inputs, outputs, self._initializers, value_info=self._inner
        )
        domains = {"": 21, "com.microsoft": 1, self._attention.operator[0]: 1}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _layer(self, layer: int) -> None:
        sizes = projections(self._config)
        self._matmul(f"normed.{layer}", f"{layer}.qkv", sizes["qkv"], f"qkv.{layer}")
        self._attend(layer)
        # ONNX infers nothing through operators of other domains, and a rewriting wants to know these.
        for name, channels in (("qkv", sizes["qkv"][1]), ("attended", sizes["o"][0])):
            self._tensor(self._inner, f"{name}.{layer}", _FLOAT, 1, "S", channels)
        self._matmul(f"attended.{layer}", f"{layer}.o", sizes["o"], f"attention_out.{layer}")
        self._skip_norm(f"residual.{layer}", f"attention_out.{layer}", f"mlp_in.{layer}", f"middle.{layer}")
        self._matmul(f"mlp_in.{layer}", f"{layer}.gate", sizes["gate"], f"gate.{layer}")
        self._matmul(f"mlp_in.{layer}", f"{layer}.up", sizes["up"], f"up.{layer}")
        self._node("Sigmoid", [f"gate.{layer}"], [f"sigmoid.{layer}"])
        self._node("Mul", [f"gate.{layer}", f"sigmoid.{layer}"], [f"silu.{layer}"])
        self._node("Mul", [f"silu.{layer}", f"up.{layer}"], [f"product.{layer}"])
        self._matmul(f"product.{layer}", f"{layer}.down", sizes["down"], f"mlp_out.{layer}")
        after = layer + 1
        self._skip_norm(f"middle.{layer}", f"mlp_out.{layer}", f"normed.{after}", f"residual.{after}")

    def _attend(self, layer: int) -> None:
        geometry = self._config.geometry
        dtype, last = cache_layout(self._attention, geometry)
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        pasts = [f"past_key_values.{layer}.{role}" for role in ("key", "value")]
        presents = [f"present.{layer}.{role}" for role in ("key", "value")]
        for past, present in zip(pasts, presents, strict=True):
            self._tensor(self._inputs, past, kind, 1, geometry.kv_heads, "P", last)
            self._tensor(self._outputs, present, kind, 1, geometry.kv_heads, "C", last)
        inputs = [f"qkv.{layer}", "", "", *pasts, "seqlens_k", "total_length", "cos", "sin"]
        for name, (index, array) in self._attention.constant_inputs(geometry).items():
            inputs += [""] * (index - len(inputs)) + [name]
            if layer == 0:
                self._constant(name, array)
        domain, op_type = self._attention.operator
        sizes = {"num_heads": geometry.heads, "kv_num_heads": geometry.kv_heads, "do_rotary": 1}
        attributes = {**sizes, **self._attention.attributes}
        self._node(op_type, inputs, [f"attended.{layer}", *presents], domain=domain, **attributes)

    def _lengths(self) -> None:
        """seqlens_k and total_sequence_length out of the mask, as genai's builder does."""
        self._constant("axis_1", np.array([1], np.int64))
        self._constant("one", np.array([1], np.int64))
        self._node("ReduceSum", ["attention_mask", "axis_1"], ["valid"], keepdims=0)
        self._node("Sub", ["valid", "one"], ["newest"])
        self._node("Cast", ["newest"], ["seqlens_k"], to=TensorProto.INT32)
        self._node("Shape", ["attention_mask"], ["mask_columns"], start=1, end=2)
        self._node("Cast", ["mask_columns"], ["total_length"], to=TensorProto.INT32)

    def _rotary_tables(self) -> None:
        size = self._config.geometry.head_size
        frequencies = self._config.rope_theta ** (-np.arange(0, size, 2) / size)
        angles = np.arange(self._config.positions)[:, None] * frequencies
        self._constant("cos", np.cos(angles).astype(np.float32))
        self._constant("sin", np.sin(angles).astype(np.float32))

    def _matmul(self, tensor: str, weight: str, size: tuple[int, int], output: str) -> None:
        attributes = {"K": size[0], "N": size[1], "bits": 4, "block_size": _BLOCK}
        attributes["accuracy_level"] = self._accuracy_level
        inputs = [tensor, f"{weight}.codes", f"{weight}.scales"]
        self._node("MatMulNBits", inputs, [output], domain="com.microsoft", **attributes)

    def _skip_norm(self, skip: str, tensor: str, output: str, total: str) -> None:
        outputs = [output, "", "", total]
        domain = "com.microsoft"
        self._node("SkipSimplifiedLayerNormalization", [tensor, skip, "ones"], outputs, domain=domain, epsilon=1e-5)

    def _node(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self._nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attributes))

    def _constant(self, name: str, array: npt.NDArray[Any]) -> None:
        self._initializers.append(numpy_helper.from_array(array, name))

    @staticmethod
    def _tensor(into: list[onnx.ValueInfoProto], name: str, element: int, *shape: int | str) -> None:
        into.append(helper.make_tensor_value_info(name, element, shape))


def _offsets(config: LlamaConfig) -> Iterator[tuple[Weight, int]]:
    begin = 0
    for weight, room in _placed(config):
        yield weight, begin
        begin += room


def _external(weight: Weight, begin: int) -> onnx.TensorProto:
    tensor = TensorProto(name=weight.name, data_type=weight.element, dims=weight.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_FILE), ("offset", begin), ("length", weight.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
