"""Trace a transformers model to an ONNX graph with one Attention node per layer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import attention_ops, ternary
from deltallm_onnx.export.attention_tap import KeyValue, Tap, listening
from deltallm_onnx.export.quiet import first_line, quiet
from deltallm_onnx.export.report import LayerReport

OPSET = 23

#: Names of the symbolic dimensions of the graph.
BATCH, SEQUENCE, PAST, TOTAL = "batch", "sequence_length", "past_sequence_length", "total_sequence_length"

#: Sizes the trace runs with: all different and none of them 0 or 1, which torch.export would take as constants.
_B, _S, _P = 2, 3, 5


class DenseGraph(torch.nn.Module):  # type: ignore[misc]  # torch is checked as untyped, see pyproject.toml
    """The signature of the dense graph around a transformers model; `causal_lm` prefixes every weight's name."""

    def __init__(self, causal_lm: torch.nn.Module, layers: Sequence[LayerReport]) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.layers = tuple(layers)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        """One call of the model.

        Args:
            input_ids: int64 [B, S].
            attention_mask: int64 [B, P+S], 0 = padding.
            position_ids: int64 [B, S].
            past: per layer key and value, float [B, Hkv, P, D].

        Returns:
            logits [B, S, V], and per layer key and value [B, Hkv, P+S, D].
        """
        tap = Tap(self.layers, input_ids, attention_mask, past)
        with listening(tap):
            result = self.causal_lm(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=tap.cache,
                use_cache=True,
            )
        return result.logits, [tap.present[layer] for layer in range(len(self.layers))]


def input_names(layers: int) -> list[str]:
    """Graph inputs, in order."""
    past = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return ["input_ids", "attention_mask", "position_ids", *past]


def output_names(layers: int) -> list[str]:
    """Graph outputs, in order."""
    return ["logits", *(f"present.{layer}.{part}" for layer in range(layers) for part in ("key", "value"))]


def trace(model: torch.nn.Module, layers: Sequence[LayerReport], model_type: str) -> ir.Model:
    """The unoptimised ONNX graph; its weights are the model's own tensors, not copies.

    Args:
        model: a causal LM in float32, eval mode, with attention implementation `attention_tap.IMPLEMENTATION`.
        layers: what `probing.probe` found.
        model_type: for the refusal's sentence.

    Raises:
        DeltaLLMError: if torch.export cannot trace it, e.g. because what it computes depends on the data.
    """
    past = [
        (
            torch.zeros(_B, layer.kv_num_heads, _P, layer.head_size),
            torch.zeros(_B, layer.kv_num_heads, _P, layer.head_size),
        )
        for layer in layers
    ]
    args = (
        torch.zeros(_B, _S, dtype=torch.int64),
        torch.ones(_B, _P + _S, dtype=torch.int64),
        torch.arange(_P, _P + _S).repeat(_B, 1),
        past,
    )
    batch, sequence, past_length, total = (torch.export.Dim(name) for name in (BATCH, SEQUENCE, PAST, TOTAL))
    past_shape = {0: batch, 2: past_length}
    shapes = (
        {0: batch, 1: sequence},
        {0: batch, 1: total},
        {0: batch, 1: sequence},
        [(past_shape, past_shape) for _ in layers],
    )
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(DenseGraph(model, layers), args, dynamic_shapes=shapes, strict=False)
            onnx_program: Any = torch.onnx.export(
                program,
                (),
                opset_version=OPSET,
                input_names=input_names(len(layers)),
                output_names=output_names(len(layers)),
                custom_translation_table={**attention_ops.translation_table(), **ternary.translation_table()},
                optimize=False,  # graph_cleanup does it, without copying weights
                verbose=False,
            )
        except Exception as error:  # torch raises every kind; the user gets one sentence
            raise DeltaLLMError(
                f"A model of type {model_type!r} cannot be traced to ONNX: {first_line(error)}; "
                "its computation must not depend on the values of its inputs."
            ) from error
    graph: ir.Model = onnx_program.model
    _name_dimensions(graph)
    return graph


def _name_dimensions(model: ir.Model) -> None:
    """Give torch's symbols the names of the interface; what torch calls past + sequence is the total length."""
    by_name = {value.name: value.shape for value in model.graph.inputs}
    ids, mask, past = by_name["input_ids"], by_name["attention_mask"], by_name["past_key_values.0.key"]
    assert ids is not None and mask is not None and past is not None  # noqa: S101, PT018 - torch.onnx types all inputs
    names = {str(ids[0]): BATCH, str(ids[1]): SEQUENCE, str(mask[1]): TOTAL, str(past[2]): PAST}
    sums = {f"{a} + {b}": TOTAL for a, b in itertools.permutations((str(past[2]), str(ids[1])))}
    values = itertools.chain(
        model.graph.inputs,
        model.graph.initializers.values(),
        (output for node in model.graph.all_nodes() for output in node.outputs),
    )
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, {**sums, **names}) for dim in value.shape])


def _renamed(dim: Any, names: dict[str, str]) -> Any:
    """A dimension with every known symbol in it renamed; longest first, so that sums win over their parts."""
    if isinstance(dim, int) or dim.value is None:
        return dim
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.sub(rf"\b({known})\b", lambda match: names[match[0]], str(dim.value))
