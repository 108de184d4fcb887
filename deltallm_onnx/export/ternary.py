"""Ternary linear layers with 8-bit activations: one opaque torch operator, and the ONNX it becomes.

A layer of BitNet (export/bitnet.py) is y = Q(x)·Tᵀ·ŵ with T ternary and, per token,

    s = 127 / max(|x|, 1e-5)      n = round(x·s), integers in ±127      y = (n·Tᵀ) / (s·d),  d = 1/ŵ

The graph says the same, with T as 2-bit codes:

    Abs, ReduceMax, Max,
    Reciprocal, Mul               s [.., 1]
    Mul, Round                    n [.., K]; ONNX rounds half to even, as torch does
    Pad, Reshape, Pad, Reshape    a pilot of 127 behind every block_size − 1 channels
    MatMulNBits                   n·Tᵀ [.., N], accuracy level 4 = int8 activations, every scale 1
    Mul, Div                      y

ONNX Runtime's int8 kernels quantise each block of activations anew, with the scale max|block|/127. Pilots, whose
weights are 0, make that scale 1 in every block: the codes are the integers n themselves and all sums are exact, as they
are in kernels that compute in float32 (below 2²⁴). Giving the kernel x with the token's maximum as pilot would save Mul
and Round, but be right in the int8 kernels only.

Importing this module imports torch and registers the operator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnx_ir.passes.common import CommonSubexpressionEliminationPass
from onnxscript import opset23 as op
from onnxscript.values import Op, Opset
from torch import Tensor

from deltallm_onnx.export.ternary_codes import TernaryFormat, unpack_ternary, with_pilots

SMALLEST = 1e-5
"""Of a token's largest activation and of a matrix's mean, as in the checkpoints' own implementation."""

LEVELS = 127
"""Largest code of an activation, and the value of a pilot."""

_INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level
_ROWS = 1024  # of a matrix that are float at a time


def _matmul_nbits_schema() -> OpSchema:
    """What torch's exporter has to know of the operator: onnx has no schemas of other domains."""
    inputs = [OpSchema.FormalParameter(name, kind) for name, kind in (("A", "T1"), ("B", "T2"), ("scales", "T1"))]
    sizes = ("K", "N", "bits", "block_size", "accuracy_level")
    return OpSchema(
        "MatMulNBits",
        "com.microsoft",
        1,
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("Y", "T1")],
        type_constraints=[("T1", ["tensor(float)"], ""), ("T2", ["tensor(uint8)"], "")],
        attributes=[OpSchema.Attribute(name, OpSchema.AttrType.INT, required=True) for name in sizes],
    )


_matmul_nbits = Op(Opset("com.microsoft", 1), "MatMulNBits", _matmul_nbits_schema())


@torch.library.custom_op("deltallm_onnx::ternary_linear", mutates_args=())  # type: ignore[untyped-decorator]  # torch is checked as untyped, see pyproject.toml
def ternary_linear(activation: Tensor, codes: Tensor, divisor: Tensor, bits: int, block_size: int) -> Tensor:
    """One linear layer without bias: round(x·s)·Tᵀ / (s·divisor) with s = 127/max|x| per token.

    Args:
        activation: float32 [..., K].
        codes: uint8 `TernaryFormat(bits, block_size).shape(N, K)`, from `pack_ternary`.
        divisor: float32 [], 1 over the absolute value of the weights.
        bits: of the codes.
        block_size: of the codes.

    Returns:
        float32 [..., N].
    """
    form = TernaryFormat(bits, block_size)
    scale = LEVELS / activation.abs().amax(-1, keepdim=True).clamp(min=SMALLEST)
    integers = with_pilots((activation * scale).round(), LEVELS, form)
    parts = [integers @ unpack_ternary(some, form).flatten(1).T for some in codes.split(_ROWS)]
    return torch.cat(parts, -1) / (scale * divisor)


@ternary_linear.register_fake  # type: ignore[untyped-decorator]  # torch is checked as untyped, see pyproject.toml
def _ternary_linear_shape(activation: Tensor, codes: Tensor, divisor: Tensor, bits: int, block_size: int) -> Tensor:
    del divisor, bits, block_size
    return activation.new_empty((*activation.shape[:-1], codes.shape[0]))


class TernaryLinear(torch.nn.Module):  # type: ignore[misc]  # torch is checked as untyped, see pyproject.toml
    """A linear layer whose weights are codes.

    Attributes:
        weight: uint8 codes, from `pack_ternary`.
        weight_divisor: float32 [], the operator's divisor.
        bias: float32 [N] or None.
    """

    def __init__(
        self, codes: Tensor, divisor: Tensor, form: TernaryFormat, *, inputs: int, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("weight", codes)
        self.register_buffer("weight_divisor", divisor)
        self.register_buffer("bias", bias)
        self._form = form
        self.in_features, self.out_features = inputs, codes.shape[0]

    def forward(self, activation: Tensor) -> Tensor:
        """One layer: float32 [..., in] to [..., out]."""
        form = self._form
        linear = ternary_linear(activation, self.weight, self.weight_divisor, form.bits, form.block_size)
        return linear if self.bias is None else linear + self.bias


def _ternary_linear_onnx(activation: Any, codes: Any, divisor: Any, bits: int, block_size: int) -> Any:
    """`ternary_linear` in standard operators and MatMulNBits."""
    K, (N, blocks, _) = activation.shape[-1], codes.shape
    channels, last = block_size - 1, op.Constant(value_ints=[-1])
    largest = op.ReduceMax(op.Abs(activation), last)
    # In the steps of torch, whose 127 / m is (1 / m) · 127. ONNX Runtime makes one division of Div and Mul.
    scale = op.Mul(op.Reciprocal(op.Max(largest, _scalar(SMALLEST))), _scalar(LEVELS))
    integers = op.Round(op.Mul(activation, scale))
    if blocks * channels != K:
        integers = op.Pad(integers, op.Constant(value_ints=[0, blocks * channels - K]), None, last)
    cut = op.Reshape(integers, op.Constant(value_ints=[0, 0, blocks, channels]))
    piloted = op.Pad(cut, op.Constant(value_ints=[0, 1]), _scalar(LEVELS), last)
    joined = op.Reshape(piloted, op.Constant(value_ints=[0, 0, blocks * block_size]))
    # A node, which equal layers come to share; `store_scales` then makes it an initializer.
    ones = op.ConstantOfShape(op.Constant(value_ints=[N, blocks]), value=ir.tensor(np.ones(1, np.float32)))
    sums = _matmul_nbits(
        joined,
        codes,
        ones,
        K=blocks * block_size,
        N=N,
        bits=bits,
        block_size=block_size,
        accuracy_level=_INT8_ACTIVATIONS,
    )
    return op.Div(sums, op.Mul(scale, divisor))


def _scalar(value: float) -> Any:
    return op.Constant(value=ir.tensor(np.float32(value)))


def translation_table() -> dict[Any, Any]:
    """The entry of `ternary_linear` in the `custom_translation_table` of `torch.onnx.export`."""
    return {torch.ops.deltallm_onnx.ternary_linear.default: _ternary_linear_onnx}


def share_quantisation(model: ir.Model) -> None:
    """Quantise an activation once for all layers that read it; nothing is done to models without ternary layers.

    It would come about later too, but the optimizer's time grows with the square of the number of nodes.
    """
    if any(node.op_type == "MatMulNBits" for node in model.graph):
        CommonSubexpressionEliminationPass()(model)


def store_scales(model: ir.Model) -> None:
    """Turn the scales of the matrices into initializers, as other tools expect them, one for all of a shape."""
    graph = model.graph
    for node in list(graph):
        users = [use.node for use in node.outputs[0].uses()]
        if node.op_type != "ConstantOfShape" or any(user.op_type != "MatMulNBits" for user in users):
            continue
        N, blocks, _ = _codes(users[0]).shape.numpy()
        tensor = ir.tensor(np.ones((N, blocks), np.float32), name=f"ones_{N}_{blocks}")
        ones = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), const_value=tensor)
        ones.shape = ir.Shape((N, blocks))
        graph.register_initializer(ones)
        ir.convenience.replace_all_uses_with(node.outputs[0], ones)
        shape = node.inputs[0]
        graph.remove(node, safe=True)
        if shape is not None and shape.is_initializer() and not shape.uses():
            del graph.initializers[str(shape.name)]


def _codes(node: ir.Node) -> ir.TensorProtocol:
    codes = node.inputs[1]
    assert codes is not None and codes.const_value is not None  # noqa: S101, PT018 - `_ternary_linear_onnx` put it there
    return codes.const_value
