"""A weight that is stored transposed, without a transposed copy in memory."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import onnx_ir as ir

_BLOCK_BYTES = 32 * 2**20


class TransposedWeight(ir.LazyTensor):
    """The transpose of a 2-D tensor: made when read, block by block when written to a file."""

    def __init__(self, weight: ir.TensorProtocol) -> None:
        super().__init__(
            lambda: ir.tensor(np.ascontiguousarray(weight.numpy().T)),
            dtype=weight.dtype,
            shape=ir.Shape(reversed(weight.shape.numpy())),
        )
        self._weight = weight

    def tofile(self, file: BinaryIO) -> None:
        """Write the transpose, in ONNX's little-endian row-major order, to an open file."""
        rows = self._weight.numpy().T
        step = max(1, _BLOCK_BYTES // max(1, rows[:1].nbytes))
        for begin in range(0, len(rows), step):
            block = np.ascontiguousarray(rows[begin : begin + step])
            file.write(block.astype(block.dtype.newbyteorder("<"), copy=False).data)
