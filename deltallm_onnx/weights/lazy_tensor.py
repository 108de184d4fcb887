"""A tensor that is made when it is written, one piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

#: What a piece of a large tensor should take in memory.
PIECE_BYTES = 32 * 2**20


class PiecewiseTensor(ir.LazyTensor):
    """A tensor computed from something else whenever it is read or written, and never kept.

    Written to a file, it takes the memory of one piece. `numpy` and `tobytes` make it whole.
    """

    def __init__(
        self,
        pieces: Callable[[], Iterable[NDArray[Any]]],
        dtype: ir.DataType,
        shape: ir.Shape | tuple[int, ...],
        *,
        name: str | None = None,
    ) -> None:
        """What it is made of.

        Args:
            pieces: called for every read; gives arrays of `dtype` whose elements follow each other in row-major order.
            dtype: element type, of one byte or more per element.
            shape: static.
            name: of the tensor.
        """
        shape = ir.Shape(shape)
        super().__init__(self._whole, dtype=dtype, shape=shape, name=name)
        self._pieces = pieces

    def pieces(self) -> Iterable[NDArray[Any]]:
        """Make the tensor anew, as arrays whose elements follow each other in row-major order."""
        return self._pieces()

    def __repr__(self) -> str:
        # The inherited one shows the function that makes it, a method of this tensor, and so has no end.
        return f"{type(self).__name__}({self.name!r}, {self.dtype}, {self.shape})"

    def tofile(self, file: BinaryIO) -> None:
        """Write the pieces, in ONNX's little-endian row-major order, to an open file.

        Raises:
            RuntimeError: if the pieces have another size than the tensor: a mistake of whoever gives them.
        """
        written = 0
        for piece in self._pieces():
            data = np.ascontiguousarray(piece, dtype=piece.dtype.newbyteorder("<"))
            file.write(data.data)
            written += data.nbytes
        if written != self.nbytes:
            raise RuntimeError(f"tensor {self.name!r} has {self.nbytes} bytes, but its pieces have {written}")

    def _whole(self) -> ir.TensorProtocol:
        shape = self.shape.numpy()
        whole = np.empty(math.prod(shape), self.dtype.numpy())
        begin = 0
        for piece in self._pieces():
            whole[begin : begin + piece.size] = piece.ravel()
            begin += piece.size
        if begin != whole.size:
            raise RuntimeError(f"tensor {self.name!r} has {whole.size} elements, but its pieces have {begin}")
        return ir.tensor(whole.reshape(shape), dtype=self.dtype, name=self.name)


def read_weight(weight: ir.TensorProtocol) -> NDArray[Any]:
    """The elements of a tensor, for one pass over them.

    What lies in a data file is mapped anew and unmapped with the last view of it: onnx_ir keeps its own mappings, whose
    pages count as memory of the process, for as long as the model.
    """
    if isinstance(weight, ir.ExternalTensor):
        weight = ir.ExternalTensor(
            weight.location,
            weight.offset,
            weight.length,
            weight.dtype,
            shape=weight.shape,
            name=weight.name,
            base_dir=weight.base_dir,
        )
    return np.asarray(weight.numpy())
