"""BitNet b1.58 checkpoints (arXiv 2402.17764): ternary weights and 8-bit activations, as a float32 graph.

A linear layer computes Q(x)·Ŵᵀ with

    Q(x) = clamp(round(x·s), −128, 127)/s,   s = 127/max|x| per token
    Ŵ    = clamp(round(W/m), −1, 1)·m,       m = mean|W|                    (online: the checkpoint holds W)
    Ŵ    = the stored ternary matrix, times or divided by weight_scale      (offline: four rows to a byte)

Ŵ is worked out once, while loading; Q is part of the graph. The output projection stays a plain linear layer.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from deltallm_onnx.export.checkpoint import StoredTensor

_SMALLEST = 1e-5  # of a scale's divisor, as in the checkpoint's own implementation
_ROWS_PER_BYTE = 4
_SCALE_SUFFIX = "_scale"  # "….weight_scale" belongs to "….weight"


@dataclasses.dataclass(frozen=True)
class BitNetScheme:
    """How a checkpoint stores its linear layers.

    Attributes:
        online: float weights, made ternary here; else packed ternary weights.
        scale_divides: the stored weight_scale divides (linear_class "bitlinear") instead of multiplying.
    """

    online: bool
    scale_divides: bool


def bitnet_scheme(config: dict[str, Any]) -> BitNetScheme | None:
    """The scheme a config.json names, or None if it is another quantisation or a variant that is not supported."""
    quantisation = config.get("quantization_config")
    if not isinstance(quantisation, dict) or quantisation.get("quant_method") != "bitnet":
        return None
    if quantisation.get("use_rms_norm") or quantisation.get("modules_to_not_convert") not in (None, [], ["lm_head"]):
        return None
    linear_class = quantisation.get("linear_class", "bitlinear")
    online = linear_class == "autobitlinear" and quantisation.get("quantization_mode", "offline") == "online"
    return BitNetScheme(online=online, scale_divides=linear_class == "bitlinear")


class _UnpackedWeight:
    """A packed ternary weight with its scale, float32 when read."""

    def __init__(self, packed: StoredTensor, scale: StoredTensor, scheme: BitNetScheme) -> None:
        self._packed, self._scale, self._scheme = packed, scale, scheme

    def __getitem__(self, index: Any) -> Tensor:
        packed, scale = self._packed[...], self._scale[...].float()
        # row r of the matrix lies in the bits 2·(r div rows) of packed row r mod rows, as value + 1
        rows = [(packed >> (2 * part)) & 3 for part in range(_ROWS_PER_BYTE)]
        ternary = torch.cat(rows).float() - 1.0
        weight: Tensor = ternary / scale if self._scheme.scale_divides else ternary * scale
        return weight[index]


def unpack_weights(tensors: dict[str, StoredTensor], scheme: BitNetScheme) -> dict[str, Any]:
    """The tensors of a checkpoint with packed weights replaced by their float32 values, made when read."""
    if scheme.online:
        return dict(tensors)
    scales = {name for name in tensors if name.endswith(f".weight{_SCALE_SUFFIX}")}
    unpacked: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name not in scales:
            scale = f"{name}{_SCALE_SUFFIX}"
            unpacked[name] = _UnpackedWeight(tensor, tensors[scale], scheme) if scale in scales else tensor
    return unpacked


class QuantisedActivationLinear(torch.nn.Module):  # type: ignore[misc]  # torch is checked as untyped, see pyproject.toml
    """Q(x)·Wᵀ + b with the weight and bias of an existing linear layer."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, activation: Tensor) -> Tensor:
        """One layer: float32 [..., in] to [..., out]."""
        scale = 127 / activation.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST)
        quantised = (activation * scale).round().clamp(-128, 127) / scale
        return torch.nn.functional.linear(quantised, self.weight, self.bias)


def quantise_linear_layers(model: Any, scheme: BitNetScheme) -> None:
    """Give every linear layer but the output projection its activation quantiser, and its ternary weight if online."""
    output = model.get_output_embeddings()
    layers = [(name, x) for name, x in model.named_modules() if isinstance(x, torch.nn.Linear) and x is not output]
    for name, layer in layers:
        if scheme.online:
            with torch.no_grad():
                mean = layer.weight.abs().mean().clamp(min=_SMALLEST)
                layer.weight.copy_((layer.weight / mean).round().clamp(-1, 1) * mean)
        model.set_submodule(name, QuantisedActivationLinear(layer))
