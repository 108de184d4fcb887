"""Export tiny models as a user of plain `torch.onnx.export` does: transformers' SDPA attention, traced by torch.export.

Nothing of deltallm_onnx.export takes part. The signature is the usual one: input_ids, attention_mask, position_ids and
past_key_values.N.* in, logits and present.N.* out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from deltallm_onnx.export.quiet import quiet

#: Sizes of the trace: all different and none 0 or 1, which torch.export would take as constants.
_B, _S, _P = 2, 3, 5

_KeyValue = tuple[Tensor, Tensor]


class _WithCache(torch.nn.Module):  # type: ignore[misc]  # torch is checked as untyped, see pyproject.toml
    """A causal language model whose cache is a list of tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[_KeyValue]
    ) -> tuple[Tensor, list[_KeyValue]]:
        """Logits [B, S, V] and the presents [B, Hkv, P+S, D] of every layer."""
        cache = transformers.DynamicCache(past)
        accepted = {"position_ids": position_ids} if self.model.config.model_type != "bloom" else {}
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **accepted
        )
        return result.logits, [(layer.keys, layer.values) for layer in result.past_key_values.layers]


def export_sdpa(directory: Path, out: Path, *, opset: int, implementation: str = "sdpa") -> None:
    """Write the model of a directory as ONNX.

    Args:
        directory: config.json and model.safetensors.
        out: the .onnx file.
        opset: of the standard operators; from 23 on, scaled dot product attention is one `Attention` node.
        implementation: transformers' name of the attention to trace.
    """
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation=implementation, local_files_only=True
        ).eval()
        model.set_experts_implementation("eager")  # the default kernel wants sizes in multiples of 4
    past = _cache_like(model)
    args = (
        torch.zeros(_B, _S, dtype=torch.int64),
        torch.ones(_B, _P + _S, dtype=torch.int64),
        torch.arange(_P, _P + _S).repeat(_B, 1),
        past,
    )
    dynamic = torch.export.Dim.DYNAMIC
    cache = {0: dynamic, 2: dynamic}
    rows = {0: dynamic, 1: dynamic}
    names = [f"{layer}.{part}" for layer in range(len(past)) for part in ("key", "value")]
    with quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            _WithCache(model),
            args,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=(rows, rows, rows, [(cache, cache) for _ in past]),
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            verbose=False,
        )
        program.save(out)


def _cache_like(model: Any) -> list[_KeyValue]:
    """Zeros of the sizes one token leaves in the model's own cache."""
    with torch.no_grad(), quiet():
        ones = torch.ones(_B, 1, dtype=torch.int64)
        used = model(input_ids=ones, attention_mask=ones, use_cache=True).past_key_values
    return [
        tuple(torch.zeros(_B, tensor.shape[1], _P, tensor.shape[3]) for tensor in (layer.keys, layer.values))
        for layer in used.layers
    ]  # type: ignore[return-value]
