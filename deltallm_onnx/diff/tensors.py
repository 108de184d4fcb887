"""What the diff knows of a tensor: type, digest of embedded data, place of external data. Nothing is loaded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from deltallm_onnx.errors import DeltaLLMError

#: Most elements of a constant that are written out in descriptions instead of its name.
_LITERAL_SIZE = 8
#: Bytes hashed at a time: a large embedded tensor is then never copied as a whole where numpy can view it.
_CHUNK = 1 << 24


class TensorView(NamedTuple):
    """A tensor without its data.

    Attributes:
        dtype: element type in lower case, for example "float32".
        shape: one text per dimension.
        digest: of the bytes, for embedded data; None where the data was not looked at.
        storage: "embedded", or the external file's name and length if that differs from what dtype and shape need.
        extent: (file, offset) of external data whose file exists, for files that both models share.
        literal: the value, for small integer and scalar constants; "" for all others.
    """

    dtype: str
    shape: tuple[str, ...]
    digest: bytes | None
    storage: str
    extent: tuple[str, int] | None
    literal: str

    @property
    def type_text(self) -> str:
        """For example "float32[2,64]"."""
        return f"{self.dtype}[{','.join(self.shape)}]"


def dtype_text(dtype: ir.DataType | None) -> str:
    """Element type as numpy spells it; "?" where it is unknown."""
    if dtype is None:
        return "?"
    name = dtype.name.lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def view_tensor(tensor: ir.TensorProtocol | None, name: str, *, contents: bool = True) -> TensorView:
    """Describe a tensor; external and lazy data stay unread.

    Args:
        tensor: the tensor; None for a value that is declared an initializer and holds nothing.
        name: for the refusal.
        contents: False leaves embedded data unread as well.

    Raises:
        DeltaLLMError: if embedded data is malformed.
    """
    if tensor is None:
        return TensorView("?", (), None, "missing", None, "")
    dtype, shape = dtype_text(tensor.dtype), tuple(str(d) for d in tensor.shape)
    if isinstance(tensor, ir.ExternalTensor):
        length = tensor.length
        storage = os.fspath(tensor.location)
        if length is not None and length != tensor.nbytes:
            storage += f", {length} bytes"
        return TensorView(dtype, shape, None, storage, _extent(tensor), "")
    if isinstance(tensor, ir.LazyTensor) or not contents:
        return TensorView(dtype, shape, None, "embedded", None, "")
    try:
        digest = _digest(tensor)
        literal = _literal(tensor)
    except (ValueError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DeltaLLMError(
            f"The data of tensor {name!r} does not fit its type {dtype}[{','.join(shape)}] ({reason}): export it again."
        ) from error
    return TensorView(dtype, shape, digest, "embedded", None, literal)


def _extent(tensor: ir.ExternalTensor) -> tuple[str, int] | None:
    if not os.fspath(tensor.base_dir):
        return None
    try:
        path = Path(tensor.path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        # The location is any text a file may hold; that there is no such file is no error here.
        return None
    return str(path), tensor.offset or 0


def _digest(tensor: ir.TensorProtocol) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    if isinstance(tensor, ir.StringTensor):
        for text in tensor.string_data():
            state.update(len(text).to_bytes(8, "little") + text)
        return state.digest()
    array = tensor.numpy()
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, flat.size, _CHUNK):
        state.update(flat[start : start + _CHUNK].data)
    return state.digest()


def _literal(tensor: ir.TensorProtocol) -> str:
    """Names of small integer constants are the exporter's counters; their values say more and are stable."""
    if isinstance(tensor, ir.StringTensor):
        return ""
    rank = len(tensor.shape)
    is_whole = tensor.dtype.is_integer() or tensor.dtype == ir.DataType.BOOL
    if tensor.size > _LITERAL_SIZE or rank > 1 or (rank == 1 and not is_whole):
        return ""
    values = [_number(v) for v in tensor.numpy().reshape(-1).tolist()]
    return values[0] if rank == 0 else f"[{', '.join(values)}]"


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
