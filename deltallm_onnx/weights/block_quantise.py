"""Codes of 4 or 8 bits with a scale per block, by ONNX Runtime's own quantisers, a few rows at a time.

A matrix [N, K] has N·⌈K/block⌉ blocks along K; what K lacks to whole blocks counts as 0. Block (n, j) stands for

    Ŵ[n, k] = scale[n, j]·(code[n, k] − zero_point[n, j]),    zero_point = 2^(bits−1) where it is not stored

in the layout of com.microsoft.MatMulNBits: codes uint8 [N, ⌈K/block⌉, block·bits/8], the lower bits first; scales
float32 [N, ⌈K/block⌉]; zero points uint8 [N, ⌈⌈K/block⌉·bits/8⌉].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime.capi import _pybind_state as onnxruntime_core

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.weights.formats import WeightFormat
from deltallm_onnx.weights.lazy_tensor import PiecewiseTensor, read_weight
from deltallm_onnx.weights.transposed import TransposedWeight

#: Weights that are quantised at once: with everything made of them, they fit the cache of a core.
_PIECE_WEIGHTS = 2**18
#: The two codes of a byte.
_NIBBLES = np.stack([np.arange(256) & 15, np.arange(256) >> 4], axis=1).astype(np.float32)

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class StorageError:
    """How far stored weights are from what they were.

    Attributes:
        squares: sum of the squared differences.
        weight_squares: sum of the squared weights.
    """

    squares: float
    weight_squares: float

    @property
    def relative_rms(self) -> float:
        """√(Σ(Ŵ−W)²/ΣW²); 0 for a matrix of zeros."""
        return math.sqrt(self.squares / self.weight_squares) if self.weight_squares else 0.0


class BlockQuantisedMatrix:
    """The tensors of one quantised matrix, made when they are written.

    All of them come from one pass over the weights: writing the codes makes the scales and zero points too, which are
    kept until they are written. Whatever is read without that takes a pass of its own.

    Attributes:
        shape: (N, K).
        codes: uint8 [N, ⌈K/block⌉, block·bits/8].
        scales: float32 [N, ⌈K/block⌉].
        zero_points: uint8 [N, ⌈⌈K/block⌉·bits/8⌉], or None if symmetric.
        error: known once the codes have been written or read.
    """

    def __init__(
        self, weight: ir.TensorProtocol, name: str, weight_format: WeightFormat, *, columns_first: bool
    ) -> None:
        """Describe the tensors; nothing is read yet.

        Args:
            weight: float32 [K, N] if `columns_first`, else [N, K].
            name: of the weight, for the names of its tensors and for refusals.
            weight_format: int8 or int4.
            columns_first: see `weight`.
        """
        if isinstance(weight, TransposedWeight):
            weight, columns_first = weight.weight, not columns_first
        self._weight, self._name, self._format, self._columns_first = weight, name, weight_format, columns_first
        first, second = weight.shape.numpy()
        self.shape = (second, first) if columns_first else (first, second)
        N, K = self.shape
        bits, block = weight_format.bits, int(weight_format.block_size or 0)
        blocks = math.ceil(K / block)
        self.codes = PiecewiseTensor(
            self._pass, ir.DataType.UINT8, (N, blocks, block * bits // 8), name=f"{name}_Q{bits}"
        )
        self.scales = PiecewiseTensor(self._take_scales, ir.DataType.FLOAT, (N, blocks), name=f"{name}_scales")
        self.zero_points: PiecewiseTensor | None = None
        if not weight_format.symmetric:
            width = math.ceil(blocks * bits / 8)
            self.zero_points = PiecewiseTensor(
                self._take_zero_points, ir.DataType.UINT8, (N, width), name=f"{name}_zero_points"
            )
        self.error: StorageError | None = None
        self._made_scales: list[Floats] = []
        self._made_zero_points: list[Bytes] = []

    def _pass(self) -> Iterator[Bytes]:
        """The codes, some rows [n, ⌈K/block⌉, block·bits/8] at a time; everything else is made by the way.

        Raises:
            DeltaLLMError: for weights that are no ordinary numbers.
        """
        N, K = self.shape
        all_scales: list[Floats] = []
        all_zero_points: list[Bytes] = []
        squares = weight_squares = 0.0
        step = max(1, _PIECE_WEIGHTS // max(1, K))
        whole = read_weight(self._weight)
        for begin in range(0, N, step):
            band = whole[:, begin : begin + step].T if self._columns_first else whole[begin : begin + step]
            rows = np.ascontiguousarray(band, np.float32)
            size = float(np.vdot(rows, rows))
            if not math.isfinite(size):
                raise DeltaLLMError(
                    f"The weight {self._name} holds numbers that are not finite, or larger than 1e19: it cannot be "
                    f"stored as {self._format.name}."
                )
            codes, scales, zero_points = quantise(rows, self._format)
            difference = dequantise(codes, scales, zero_points, self._format)[:, :K]
            difference -= rows
            squares += float(np.einsum("nk,nk->", difference, difference))
            weight_squares += size
            all_scales.append(scales)
            if zero_points is not None:
                all_zero_points.append(zero_points)
            yield codes
        self.error = StorageError(squares, weight_squares)
        self._made_scales, self._made_zero_points = all_scales, all_zero_points

    def _take_scales(self) -> list[Floats]:
        if not self._made_scales:
            _exhaust(self._pass())
        scales, self._made_scales = self._made_scales, []
        return scales

    def _take_zero_points(self) -> list[Bytes]:
        if not self._made_zero_points:
            _exhaust(self._pass())
        zero_points, self._made_zero_points = self._made_zero_points, []
        return zero_points


def quantise(rows: Floats, weight_format: WeightFormat) -> tuple[Bytes, Floats, Bytes | None]:
    """Quantise some rows of a matrix.

    Args:
        rows: [n, K].
        weight_format: int8 or int4.

    Returns:
        Codes, scales and zero points (None if symmetric), as in this module's docstring with n for N.
    """
    bits, block = weight_format.bits, int(weight_format.block_size or 0)
    n, K = rows.shape
    blocks = math.ceil(K / block)
    columns = np.zeros((blocks * block, n), np.float32)
    columns[:K] = rows.T
    codes = np.zeros((n, blocks, block * bits // 8), np.uint8)
    scales = np.zeros((n, blocks), np.float32)
    zero_points = np.zeros((n, math.ceil(blocks * bits / 8)), np.uint8)
    kernel = onnxruntime_core.quantize_matmul_4bits if bits == 4 else onnxruntime_core.quantize_matmul_8bits
    kernel(codes, columns, scales, zero_points, block, n, K, weight_format.symmetric)
    return codes, scales, None if weight_format.symmetric else zero_points


def dequantise(codes: Bytes, scales: Floats, zero_points: Bytes | None, weight_format: WeightFormat) -> Floats:
    """The weights [n, ⌈K/block⌉·block] that codes stand for, for what `quantise` returns."""
    n, blocks = scales.shape
    weights = _unpacked(codes, weight_format.bits).reshape(n, blocks, -1)
    if zero_points is None:
        weights -= np.float32(1 << (weight_format.bits - 1))
    else:
        weights -= _unpacked(zero_points, weight_format.bits).reshape(n, -1)[:, :blocks, None]
    weights *= scales[:, :, None]
    return weights.reshape(n, -1)


def _unpacked(codes: Bytes, bits: int) -> Floats:
    """Codes as float32, in one more dimension where a byte has several."""
    return _NIBBLES[codes] if bits == 4 else codes.astype(np.float32)


def _exhaust(pieces: Iterator[Any]) -> None:
    for _ in pieces:
        pass
