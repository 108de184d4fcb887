"""A weight that is stored transposed, without a transposed copy in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from deltallm_onnx.weights.lazy_tensor import PIECE_BYTES, PiecewiseTensor, read_weight


class TransposedWeight(PiecewiseTensor):
    """The transpose of a 2-D tensor: made when read, a band of rows at a time when written to a file.

    Attributes:
        weight: the tensor that is transposed.
    """

    def __init__(self, weight: ir.TensorProtocol) -> None:
        super().__init__(self._bands, dtype=weight.dtype, shape=ir.Shape(reversed(weight.shape.numpy())))
        self.weight = weight

    def _bands(self) -> Iterator[NDArray[Any]]:
        rows = read_weight(self.weight).T
        step = max(1, PIECE_BYTES // max(1, rows[:1].nbytes))
        for begin in range(0, len(rows), step):
            yield rows[begin : begin + step]
