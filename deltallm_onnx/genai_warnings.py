"""Known traps of onnxruntime-genai's model builder, seen in the model it wrote: one sentence each.

A trap is in the source already, and the graph is rewritten as it is; but a user who compares the result with the
checkpoint should not look for the difference in delta attention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from deltallm_onnx.genai_folder import GenaiFolder
from deltallm_onnx.passes.head_size import channels

_ATTENTION = ("com.microsoft", "GroupQueryAttention")
_BLOCK_QUANTISED = ("com.microsoft", "MatMulNBits")
_MATRIX_PRODUCTS = (_BLOCK_QUANTISED, ("", "MatMul"))
#: The accuracy level with activations in 8 bits.
_INT8_ACTIVATIONS = 4
_ZERO_POINTS = 3


def genai_warnings(genai: GenaiFolder, model: ir.Model) -> tuple[str, ...]:
    """The traps that a model has fallen into.

    Args:
        genai: the folder's configuration.
        model: as the builder wrote it, not rewritten.
    """
    nodes = [(_operator(node), node) for node in model.graph]
    found = [
        _dropped_window(genai.config["model"], [node for kind, node in nodes if kind == _ATTENTION]),
        _two_heads(genai.config["model"], [node for kind, node in nodes if kind in _MATRIX_PRODUCTS]),
        *_slow_or_wrong_products([node for kind, node in nodes if kind == _BLOCK_QUANTISED]),
    ]
    return tuple(sentence for sentence in found if sentence is not None)


def _operator(node: ir.Node) -> tuple[str, str]:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type


def _dropped_window(config: dict[str, Any], nodes: list[ir.Node]) -> str | None:
    """The builder writes the window down, but gives it to layers whose layer_types say so, which Mistral lacks."""
    section = config["decoder"].get("sliding_window")
    window = section.get("window_size") if isinstance(section, dict) else None
    if not isinstance(window, int) or window <= 0 or not nodes:
        return None
    if any(_number(node, "local_window_size", -1) > 0 for node in nodes):
        return None
    return (
        f"genai_config.json tells of a sliding window of {window} tokens, but no layer of the graph has one "
        "(onnxruntime-genai's builder drops the window of Mistral and Phi-3): behind it onnxruntime-genai 0.18 stops, "
        "and the rewritten model sees every token, which its checkpoint does not; 'deltallm-onnx convert' keeps the "
        "window."
    )


def _two_heads(config: dict[str, Any], nodes: list[ir.Node]) -> str | None:
    """The builder knows an output head by its number of outputs alone."""
    vocabulary = config.get("vocab_size")
    if not isinstance(vocabulary, int) or vocabulary <= 0:
        return None
    wide = [node for node in nodes if channels(node.outputs[0]) == vocabulary]
    if len(wide) < 2:  # the output head itself
        return None
    return (
        f"{_name(wide[0])} has {vocabulary} outputs, as many as the vocabulary has tokens: onnxruntime-genai's builder "
        "takes every such layer for the output head, so compare the model with its checkpoint, or build it with "
        "'deltallm-onnx convert'."
    )


def _slow_or_wrong_products(nodes: list[ir.Node]) -> Iterator[str]:
    levels = Counter(_number(node, "accuracy_level", 0) for node in nodes)
    if levels[0]:
        yield (
            f"{levels[0]} of {len(nodes)} MatMulNBits nodes have accuracy_level 0 and multiply in float32: build the "
            "model with accuracy_level=4 for speed."
        )
    asymmetric = [
        node
        for node in nodes
        if _number(node, "accuracy_level", 0) == _INT8_ACTIVATIONS
        and _number(node, "bits", 4) == 4
        and len(node.inputs) > _ZERO_POINTS
        and node.inputs[_ZERO_POINTS] is not None
    ]
    if asymmetric:
        yield (
            f"{len(asymmetric)} MatMulNBits nodes have zero points and accuracy_level 4: ONNX Runtime may compute them "
            "wrong on processors with AVX2 and without AVX-512 (microsoft/onnxruntime#29853): build the model with "
            "is_symmetric=true."
        )


def _number(node: ir.Node, name: str, default: int) -> int:
    value = node.attributes[name].value if name in node.attributes else default
    return value if isinstance(value, int) else default


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}" if node.name else f"A {node.op_type}"
