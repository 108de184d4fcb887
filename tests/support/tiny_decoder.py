"""A two-layer decoder built by hand from standard ONNX operators, for tests that need a model and no exporter.

Sizes differ wherever two could be confused: 2 layers, 6 query heads, 3 KV heads, head size 8, hidden 40, vocabulary 29.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

LAYERS, QUERY_HEADS, KV_HEADS, HEAD_SIZE, HIDDEN, VOCABULARY = 2, 6, 3, 8, 40, 29
#: A learned embedding for so many positions: longer sequences are an error inside ONNX Runtime.
POSITIONS = 230
SEED = 20250730


class _Builder:
    """Collects nodes and seeded weights."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(SEED)

    def weight(self, name: str, *shape: int, scale: float = 1.0) -> str:
        data = self._random.standard_normal(shape) * scale / np.sqrt(shape[0])
        self.initializers.append(numpy_helper.from_array(data.astype(np.float32), name))
        return name

    def integers(self, **values: int | list[int]) -> None:
        self.initializers += [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in values.items()]

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output


def tiny_decoder(*, grouped_query: bool = False) -> onnx.ModelProto:
    """The model. Its tokens keep changing under greedy decoding, and its next token depends on the whole prompt.

    Args:
        grouped_query: attention as com.microsoft GroupQueryAttention, which updates its caches in place, instead of
            the standard Attention, which cannot. The weights are the same.
    """
    build = _Builder()
    build.integers(zero=0, one=1, axis1=[1], axes12=[1, 2])
    attend = _grouped_query_attention(build) if grouped_query else _standard_attention(build)
    token = build.node("Gather", [build.weight("embedding", VOCABULARY, HIDDEN, scale=5.0), "input_ids"], "token")
    places = build.weight("positions", POSITIONS, HIDDEN, scale=30.0)
    place = build.node("Gather", [places, "position_ids"], "position")
    hidden = build.node("Add", [token, place], "hidden.0")
    for layer in range(LAYERS):
        projected = [
            build.node(
                "MatMul", [hidden, build.weight(f"{role}.{layer}", HIDDEN, heads * HEAD_SIZE, scale=scale)], name
            )
            for role, heads, scale, name in (
                ("q", QUERY_HEADS, 0.3, f"query.{layer}"),
                ("k", KV_HEADS, 0.3, f"key.{layer}"),
                ("v", KV_HEADS, 1.0, f"value.{layer}"),
            )
        ]
        attended = attend(layer, projected)
        out = build.weight(f"o.{layer}", QUERY_HEADS * HEAD_SIZE, HIDDEN)
        hidden = build.node(
            "Add", [hidden, build.node("MatMul", [attended, out], f"o_out.{layer}")], f"hidden.{layer + 1}"
        )
    build.node("MatMul", [hidden, build.weight("head", HIDDEN, VOCABULARY)], "logits")
    graph = helper.make_graph(build.nodes, "tiny", *_interface(), build.initializers)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


Attend = Callable[[int, list[str]], str]


def _standard_attention(build: _Builder) -> Attend:
    build.node("Shape", ["attention_mask"], "total", start=1, end=2)
    build.node("Squeeze", ["total"], "total_scalar")
    build.node("Shape", ["past_key_values.0.key"], "past", start=2, end=3)
    build.node("Squeeze", ["past"], "past_scalar")
    build.node("Range", ["zero", "total_scalar", "one"], "key_position")
    build.node("Range", ["past_scalar", "total_scalar", "one"], "query_index")
    build.node("Unsqueeze", ["query_index", "axis1"], "query_position")
    build.node("LessOrEqual", ["key_position", "query_position"], "causal")
    build.node("Cast", ["attention_mask"], "real", to=TensorProto.BOOL)
    build.node("Unsqueeze", ["real", "axes12"], "real_keys")
    build.node("And", ["causal", "real_keys"], "mask")

    def attend(layer: int, projected: list[str]) -> str:
        inputs = [*projected, "mask", f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        return _attention_node(build, layer, "Attention", inputs, q_num_heads=QUERY_HEADS)

    return attend


def _grouped_query_attention(build: _Builder) -> Attend:
    build.node("ReduceSum", ["attention_mask", "axis1"], "valid", keepdims=0)
    build.node("Sub", ["valid", "one"], "newest")
    build.node("Cast", ["newest"], "seqlens_k", to=TensorProto.INT32)
    build.node("Shape", ["attention_mask"], "total", start=1, end=2)
    build.node("Squeeze", ["total"], "total_scalar")
    build.node("Cast", ["total_scalar"], "total_length", to=TensorProto.INT32)

    def attend(layer: int, projected: list[str]) -> str:
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        inputs = [*projected, *past, "seqlens_k", "total_length"]
        return _attention_node(
            build, layer, "GroupQueryAttention", inputs, domain="com.microsoft", num_heads=QUERY_HEADS
        )

    return attend


def _attention_node(build: _Builder, layer: int, op: str, inputs: list[str], **attributes: object) -> str:
    outputs = [f"attended.{layer}", f"present.{layer}.key", f"present.{layer}.value"]
    name = f"attention.{layer}"
    build.nodes.append(helper.make_node(op, inputs, outputs, name=name, kv_num_heads=KV_HEADS, **attributes))
    return outputs[0]


def _interface() -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Graph inputs and outputs."""

    def info(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    sequences = (("input_ids", "S"), ("attention_mask", "T"), ("position_ids", "S"))
    inputs = [info(name, TensorProto.INT64, "B", length) for name, length in sequences]
    outputs = [info("logits", TensorProto.FLOAT, "B", "S", VOCABULARY)]
    for layer in range(LAYERS):
        for role in ("key", "value"):
            past, present = f"past_key_values.{layer}.{role}", f"present.{layer}.{role}"
            inputs.append(info(past, TensorProto.FLOAT, "B", KV_HEADS, "P", HEAD_SIZE))
            outputs.append(info(present, TensorProto.FLOAT, "B", KV_HEADS, "C", HEAD_SIZE))
    return inputs, outputs


def save_tiny_decoder(folder: Path, *, grouped_query: bool = False, end_of_sequence: int | None = None) -> Path:
    """Write the model, a tokenizer of single letters and a generation_config.json; returns the .onnx path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.onnx"
    onnx.save(tiny_decoder(grouped_query=grouped_query), path)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_of_sequence}))
    return path


def tiny_tokenizer() -> Tokenizer:
    """One token per character: ids 0–25 are a–z, 26 the blank, 27 the full stop, 28 everything else."""
    letters = [*"abcdefghijklmnopqrstuvwxyz .", "?"]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))  # noqa: S106  # a token of text, no password
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
