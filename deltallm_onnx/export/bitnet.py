"""BitNet b1.58 checkpoints (arXiv 2402.17764): ternary weights and 8-bit activations.

A linear layer computes Q(x)·Ŵᵀ with

    Q(x) = clamp(round(x·s), −128, 127)/s,   s = 127/max|x| per token
    Ŵ    = clamp(round(W/m), −1, 1)·m,       m = mean|W|                    (online: the checkpoint holds W)
    Ŵ    = the stored ternary matrix, times or divided by weight_scale      (offline: four rows to a byte)

There are two forms of it. As codes of a few bits (export/ternary.py), which is made straight from the checkpoint,
matrix by matrix; and as float32, where Ŵ is worked out while loading and Q is part of the graph. The output projection
stays a plain linear layer in both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.checkpoint import StoredTensor
from deltallm_onnx.export.ternary import LEVELS, SMALLEST, TernaryLinear
from deltallm_onnx.export.ternary_codes import TernaryFormat, pack_ternary

_ROWS_PER_BYTE = 4
_LOW_BITS = 0b01010101  # of the fields of a byte
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


def linear_layers(model: Any) -> dict[str, torch.nn.Linear]:
    """The layers BitNet quantises, by name: all linear ones but the output projection."""
    output = model.get_output_embeddings()
    return {name: x for name, x in model.named_modules() if isinstance(x, torch.nn.Linear) and x is not output}


class PackedTernary:
    """A ternary matrix of a checkpoint with its scale, read anew at every use."""

    def __init__(self, name: str, packed: StoredTensor, scale: StoredTensor) -> None:
        self._name, self._packed, self._scale = name, packed, scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        rows, *rest = self._packed.shape
        return (rows * _ROWS_PER_BYTE, *rest)

    def ternary(self) -> Tensor:
        """int8 [N, K].

        Raises:
            DeltaLLMError: if a weight is none of −1, 0 and 1.
        """
        packed = self._packed[...]
        if packed.dtype is not torch.uint8:
            raise DeltaLLMError(f"{self._name} holds {packed.dtype}, not four ternary weights to a byte.")
        if bool((packed & (packed >> 1) & _LOW_BITS).any()):  # 3 in some field
            raise DeltaLLMError(f"{self._name} has weights that are none of −1, 0 and 1: the checkpoint is damaged.")
        # row r of the matrix lies in the bits 2·(r div rows) of packed row r mod rows, as value + 1
        ternary = torch.empty((_ROWS_PER_BYTE, *packed.shape), dtype=torch.uint8)
        for part in range(_ROWS_PER_BYTE):
            torch.bitwise_right_shift(packed, 2 * part, out=ternary[part])
        return ternary.bitwise_and_(3).view(torch.int8).sub_(1).flatten(0, 1)

    def scale(self) -> Tensor:
        """weight_scale, float32 [].

        Raises:
            DeltaLLMError: if it is not one positive number.
        """
        scale = self._scale[...].float().reshape(-1)
        if len(scale) != 1 or not 0 < float(scale[0]) < torch.inf:
            raise DeltaLLMError(f"The scale of {self._name} is {scale.tolist()}: one positive number is needed.")
        return scale[0]


class _FloatWeight:
    """A packed ternary weight, float32 when read."""

    def __init__(self, packed: PackedTernary, scheme: BitNetScheme) -> None:
        self._packed, self._scheme = packed, scheme

    def __getitem__(self, index: Any) -> Tensor:
        ternary, scale = self._packed.ternary().float(), self._packed.scale()
        weight: Tensor = ternary / scale if self._scheme.scale_divides else ternary * scale
        return weight[index]


def packed_matrices(tensors: Mapping[str, StoredTensor], scheme: BitNetScheme) -> dict[str, PackedTernary]:
    """The packed matrices of a checkpoint by name; none if it is an online one."""
    if scheme.online:
        return {}
    names = [name.removesuffix(_SCALE_SUFFIX) for name in tensors if name.endswith(f".weight{_SCALE_SUFFIX}")]
    return {
        name: PackedTernary(name, tensors[name], tensors[f"{name}{_SCALE_SUFFIX}"]) for name in names if name in tensors
    }


def float_weights(tensors: Mapping[str, StoredTensor], scheme: BitNetScheme) -> dict[str, Any]:
    """The tensors of a checkpoint with packed weights replaced by their float32 values, made when read."""
    packed = packed_matrices(tensors, scheme)
    kept = {name: tensor for name, tensor in tensors.items() if name.removesuffix(_SCALE_SUFFIX) not in packed}
    return {**kept, **{name: _FloatWeight(matrix, scheme) for name, matrix in packed.items()}}


def stand_ins(tensors: Mapping[str, StoredTensor], scheme: BitNetScheme, layers: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a checkpoint with the ternary ones of these linear layers replaced by zeros that take no memory.

    `ternary_layers` puts the codes in their place, once transformers has built the model around them.
    """
    packed = packed_matrices(tensors, scheme)
    kept = {name: tensor for name, tensor in tensors.items() if name.removesuffix(_SCALE_SUFFIX) not in packed}
    shapes = {name: matrix.shape for name, matrix in packed.items()}
    if scheme.online:
        shapes |= {name: kept[name].shape for name in (f"{layer}.weight" for layer in layers) if name in kept}
    return {**kept, **{name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}}


def ternary_layers(model: Any, tensors: Mapping[str, StoredTensor], scheme: BitNetScheme, form: TernaryFormat) -> None:
    """Replace every linear layer but the output projection by its codes, made from the checkpoint one at a time.

    Args:
        model: with stand-ins for weights.
        tensors: the checkpoint.
        scheme: how the checkpoint stores its layers.
        form: of the codes.

    Raises:
        DeltaLLMError: for a matrix that is not ternary or whose scale is no positive number, and for a checkpoint with
            other names than the model's.
    """
    packed, layers = packed_matrices(tensors, scheme), linear_layers(model)
    expected, found = {f"{name}.weight" for name in layers}, set(tensors if scheme.online else packed)
    lost = sorted(expected - found if scheme.online else found - expected)
    if lost:
        raise DeltaLLMError(
            f"The checkpoint and the model have different names for {lost[0]} ({len(lost)} of the ternary matrices): "
            "save the whole causal language model."
        )
    for name, layer in layers.items():
        weight = f"{name}.weight"
        if weight in packed:
            ternary, scale = packed[weight].ternary(), packed[weight].scale()
            divisor = scale if scheme.scale_divides else 1 / scale
        elif scheme.online:
            ternary, divisor = _made_ternary(tensors[weight][...])
        else:  # left in float by the publisher
            model.set_submodule(name, QuantisedActivationLinear(layer))
            continue
        bias = None if layer.bias is None else layer.bias.detach()
        codes = pack_ternary(ternary, form)
        model.set_submodule(name, TernaryLinear(codes, divisor, form, inputs=layer.in_features, bias=bias))


def _made_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The ternary matrix of a float one, and 1 over the value its ones stand for, in float32."""
    weight = weight.float()
    scale = 1 / weight.abs().mean().clamp(min=SMALLEST)
    return (weight * scale).round_().clamp_(-1, 1), scale


class QuantisedActivationLinear(torch.nn.Module):  # type: ignore[misc]  # torch is checked as untyped, see pyproject.toml
    """Q(x)·Wᵀ + b with the weight and bias of an existing linear layer."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, activation: Tensor) -> Tensor:
        """One layer: float32 [..., in] to [..., out]."""
        scale = LEVELS / activation.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
        quantised = (activation * scale).round().clamp(-LEVELS - 1, LEVELS) / scale
        return torch.nn.functional.linear(quantised, self.weight, self.bias)


def quantise_float_layers(model: Any, scheme: BitNetScheme) -> None:
    """Give every linear layer but the output projection its activation quantiser, and its ternary weight if online."""
    for name, layer in linear_layers(model).items():
        if scheme.online:
            with torch.no_grad():
                ternary, scale = _made_ternary(layer.weight)
                layer.weight.copy_(ternary / scale)
        model.set_submodule(name, QuantisedActivationLinear(layer))
